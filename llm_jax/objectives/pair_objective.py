"""What objectives of encoder-decoders on packed rows have in common: the batch, its lengths and its FLOPs.

Legend: B batch, S length of the encoder's sequence, T length of the decoder's.
"""

import abc
from collections.abc import Mapping
from typing import Any

import numpy as np

from llm_jax.core.checks import check
from llm_jax.core.configclass import configclass
from llm_jax.data.examples import Row
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models import count
from llm_jax.models.config import EncoderDecoderConfig, ModelConfig
from llm_jax.models.inputs import Inputs
from llm_jax.objectives.batch import Batch
from llm_jax.objectives.objective import Needs
from llm_jax.objectives.token_objective import TokenObjective
from llm_jax.tokenizers.tokenizer import Tokenizer


@configclass
class PairObjective(TokenObjective):
    """An encoder reads one sequence of a row, and the decoder generates another. Derive a configclass from it whose
    `examples` make the rows of `pair_row`."""

    needs = Needs("encoder-decoder")
    predicts_text = False

    @abc.abstractmethod
    def lengths(self, length: int) -> tuple[int, int]:
        """(S, T): tokens that the encoder and the decoder read of a row of `length` tokens, padding included."""

    def decoder_start(self, tokenizer: Tokenizer | None) -> int:
        """Id that the decoder reads first, in training and generation."""
        return 0

    def targets(self, sequence_length: int) -> int:
        return self.lengths(sequence_length)[1]

    def check(self, model: ModelConfig, sequence_length: int) -> None:
        """
        Raises:
          ValueError: for a model that is no encoder-decoder, or whose encoder or decoder is too short.
        """
        name = type(self).__name__
        super().check(model, sequence_length)
        longest = max(self.lengths(sequence_length))
        check(
            longest <= model.max_length,
            f"objective {name} makes sequences of {longest} tokens of data.sequence_length {sequence_length}, and "
            f"model.max_length is {model.max_length}: reduce the one or increase the other",
        )

    def batch(self, rows: Mapping[str, Any]) -> Batch:
        encoder = Inputs(rows["encoder_tokens"], _sequence(rows, "encoder_"))
        inputs = Inputs(rows["decoder_tokens"], _sequence(rows, "target_"), encoder=encoder)
        return Batch(inputs, rows["targets"], (rows["target_segment_ids"] != 0).astype(np.float32))

    def training_flops(self, model: ModelConfig, sequence_length: int) -> float:
        if not isinstance(model, EncoderDecoderConfig):
            raise ValueError(f"model is of type {type(model).__name__}: {type(self).__name__} trains encoder-decoders")
        return 3 * count.pair_flops(model, *self.lengths(sequence_length)) / sequence_length


def pair_row(source: np.ndarray, target: np.ndarray, lengths: tuple[int, int], start_id: int = 0) -> Row:
    """`encoder_tokens`, `decoder_tokens` and `targets`, padded to `lengths`, with segment ids that are 1, or 0 at
    padding.

    Args:
      start_id: what the decoder reads first; then it reads the targets.
    """
    (source, source_ids), (target, target_ids) = map(_padded, (source, target), lengths)
    return {
        "encoder_tokens": source,
        "encoder_segment_ids": source_ids,
        "decoder_tokens": np.concatenate([np.array([start_id], np.int32), target[:-1]]),
        "targets": target,
        "target_segment_ids": target_ids,
    }


def _sequence(rows: Mapping[str, Any], prefix: str) -> SequenceInfo:
    """Segment ids and positions; rows without positions hold one sequence."""
    ids: Any = rows[prefix + "segment_ids"]
    whole: Any = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    return SequenceInfo(rows.get(prefix + "positions", whole), ids)


def _padded(tokens: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """int32 [length] twice: the tokens, padded with zeros, and their segment ids."""
    padded, ids = np.zeros((2, length), np.int32)
    padded[: len(tokens)], ids[: len(tokens)] = tokens, 1
    return padded, ids

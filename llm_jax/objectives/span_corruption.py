"""Span corruption: an encoder reads text without some spans, and the decoder generates them.

Legend: B batch, S length of the encoder's sequence, T length of the decoder's.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from llm_jax.core.checks import check
from llm_jax.core.configclass import configclass
from llm_jax.data.examples import Examples, Row
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models import count
from llm_jax.models.config import EncoderDecoderConfig, ModelConfig
from llm_jax.models.inputs import Inputs
from llm_jax.objectives import special_tokens
from llm_jax.objectives.batch import Batch
from llm_jax.objectives.objective import Needs
from llm_jax.objectives.token_objective import TokenObjective
from llm_jax.tokenizers.tokenizer import Tokenizer


@configclass
class SpanCorruptionConfig(TokenObjective):
    """T5's objective (Raffel et al. 2020, arXiv:1910.10683, 3.1.4 and figure 2).

    A row of N = data.sequence_length tokens is one sequence, whatever documents it holds, as in T5. Spans of it are
    replaced by one sentinel each in what the encoder reads; the decoder generates each sentinel with the tokens that it
    replaces, and a last sentinel. Sentinels are the tokens `<extra_id_0>`, `<extra_id_1>`, ... of the tokenizer; those
    that it lacks are the last ids of the model's vocabulary, the first of them the very last, as in T5. Lengths follow
    from N alone, so there is no padding: S = N - corrupted + spans, T = corrupted + spans + 1,
    spans = round(corrupted / mean_span).
    """

    needs = Needs("encoder-decoder")
    predicts_text = False

    rate: float = 0.15
    """Share of the tokens of a row that are corrupted."""
    mean_span: float = 3.0
    """Mean number of tokens in a span."""

    def __post_init__(self):
        super().__post_init__()
        check(0 < self.rate < 1, f"objective.rate is {self.rate}: it must be above 0 and below 1")
        check(self.mean_span >= 1, f"objective.mean_span is {self.mean_span}: it must be at least 1")

    def corrupted(self, length: int) -> tuple[int, int]:
        """(corrupted tokens, spans) of a row of `length` tokens, one at least and so that a token is left between any
        two spans (`random_spans_noise_mask` of T5's code)."""
        tokens = min(max(round(length * self.rate), 1), length - 1)
        return tokens, min(max(round(tokens / self.mean_span), 1), length - tokens)

    def lengths(self, length: int) -> tuple[int, int]:
        """(S, T): tokens that the encoder and the decoder read of a row of `length` tokens."""
        tokens, spans = self.corrupted(length)
        return length - tokens + spans, tokens + spans + 1

    def targets(self, sequence_length: int) -> int:
        return self.lengths(sequence_length)[1]

    def check(self, model: ModelConfig, sequence_length: int) -> None:
        """
        Raises:
          ValueError: for a model that is no encoder-decoder, and for rows of fewer than two tokens.
        """
        check(
            sequence_length > 1,
            f"data.sequence_length is {sequence_length}: at least 2 tokens are required, of which one is corrupted",
        )
        super().check(model, sequence_length)

    def special_tokens(self, sequence_length: int) -> tuple[str, ...]:
        return tuple(map(special_tokens.sentinel, range(self.corrupted(sequence_length)[1] + 1)))

    def examples(self, model: ModelConfig, tokenizer: Tokenizer | None, sequence_length: int) -> "SpanExamples":
        names = self.special_tokens(sequence_length)
        found = special_tokens.ids(names, tokenizer, model.vocab_size or 0)
        return SpanExamples(self, np.array([found[name] for name in names], np.int32))

    def batch(self, rows: Mapping[str, Any]) -> Batch:
        def sequence(ids: Any) -> SequenceInfo:
            positions: Any = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
            return SequenceInfo(positions, ids)

        encoder = Inputs(rows["encoder_tokens"], sequence(rows["encoder_segment_ids"]))
        targets, segments = rows["targets"], rows["target_segment_ids"]
        # The decoder begins with the id 0, as T5 does, and then reads the targets.
        read: Any = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
        inputs = Inputs(read, sequence(segments), encoder=encoder)
        return Batch(inputs, targets, (segments != 0).astype(np.float32))

    def training_flops(self, model: ModelConfig, sequence_length: int) -> float:
        if not isinstance(model, EncoderDecoderConfig):
            raise ValueError(f"model is of type {type(model).__name__}: span corruption trains encoder-decoders")
        return 3 * count.pair_flops(model, *self.lengths(sequence_length)) / sequence_length


class SpanExamples(Examples):
    """Makes `encoder_tokens` and `targets`, with segment ids that are 1, or 0 where a row is padding."""

    def __init__(self, config: SpanCorruptionConfig, sentinels: np.ndarray):
        """`sentinels`: their ids, of one more than the spans of a full row."""
        self._config, self._sentinels = config, sentinels

    def row(self, row: Row, generator: np.random.Generator) -> Row:
        tokens = row["tokens"][:-1]
        real = int(np.count_nonzero(row["segment_ids"][:-1]))
        source, target = np.zeros((2, 0), np.int32)
        if real > 1:  # the last row of a set may end with padding, which is left out
            count, spans = self._config.corrupted(real)
            corrupted = _corrupted(real, count, spans, generator)
            # The first token is never corrupted, so the target begins with a sentinel, the same as the first of the
            # source.
            source = self._merged(tokens[:real], ~corrupted)
            target = np.append(self._merged(tokens[:real], corrupted), self._sentinels[spans])
        source_length, target_length = self._config.lengths(len(tokens))
        (source, source_ids), (target, target_ids) = _padded(source, source_length), _padded(target, target_length)
        return {
            "encoder_tokens": source,
            "encoder_segment_ids": source_ids,
            "targets": target,
            "target_segment_ids": target_ids,
        }

    def _merged(self, tokens: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """The tokens that are kept, and a sentinel for each run of others."""
        starts = ~kept & np.concatenate([[True], kept[:-1]])
        merged = tokens.astype(np.int32)
        merged[starts] = self._sentinels[: np.count_nonzero(starts)]
        return merged[kept | starts]


def _padded(tokens: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """int32 [length] twice: the tokens, padded with zeros, and their segment ids."""
    padding = (0, length - len(tokens))
    return np.pad(tokens, padding).astype(np.int32), np.pad(np.ones(len(tokens), np.int32), padding)


def _corrupted(length: int, tokens: int, spans: int, generator: np.random.Generator) -> np.ndarray:
    """bool [length], the tokens in `spans` spans of `tokens` tokens in all; lengths of spans, and of what lies between
    them, are uniform among all that add up. The first token is never corrupted and the last one always, as in T5."""
    parts = np.stack([_partition(length - tokens, spans, generator), _partition(tokens, spans, generator)], axis=1)
    return np.repeat(np.tile([False, True], spans), parts.reshape(-1))


def _partition(total: int, parts: int, generator: np.random.Generator) -> np.ndarray:
    """int [parts], positive numbers that add up to `total`."""
    # Each set of distinct cuts between the `total` items is one partition, so all partitions are equally likely.
    cuts = np.sort(generator.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))

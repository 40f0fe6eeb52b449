"""Permutation language modelling: predict tokens of a document in a random order.

Legend: B batch, T tokens of a row, Q query-stream tokens.
"""

import dataclasses
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
from llm_jax.objectives.batch import Batch
from llm_jax.objectives.objective import Needs
from llm_jax.objectives.token_objective import TokenObjective
from llm_jax.tokenizers.tokenizer import Tokenizer


@configclass
class PermutationLMConfig(TokenObjective):
    """XLNet's objective (Yang et al. 2019, arXiv:1906.08237, 2.2 and 2.3).

    Some tokens of a row are predicted, those of each document in a random order, each given those before it in that
    order and all tokens of its document that are not predicted (partial prediction). This is the paper's uniform order
    of all tokens, of which only the last ones are predicted. The order is that of attention alone: tokens keep their
    positions.

    The sequence of the model is the T tokens (content stream) and then Q query-stream tokens, of which each predicts
    one token. Q = round(rate T) follows from T alone; where a row has padding, some of the Q are padding. XLNet's code
    predicts spans of 1 to 5 tokens; here tokens are chosen one by one, as in the paper. There is no memory of earlier
    segments.
    """

    needs = Needs("bidirectional")
    predicts_text = False

    rate: float = 1 / 6
    """Share of the tokens of a row that are predicted, the paper's 1 / K with K = 6 (3.1): that many exactly, one at
    least; never boundary tokens."""

    def __post_init__(self):
        super().__post_init__()
        check(0 < self.rate <= 1, f"objective.rate is {self.rate}: it must be above 0 and at most 1")

    def targets(self, sequence_length: int) -> int:
        """Q."""
        return max(1, round(self.rate * sequence_length))

    def check(self, model: ModelConfig, sequence_length: int) -> None:
        """
        Raises:
          ValueError: for a model without two streams, or one that is too short for both.
        """
        decoder, targets = model.stacks[-1], self.targets(sequence_length)
        check(
            decoder.permuted and decoder.embed.target,
            "objective PermutationLMConfig requires embed.target=True and RelativeAttentionConfig with the mask "
            "Permuted() in every block: use a model of `families.xlnet`, or MaskedLMConfig for other encoders",
        )
        super().check(model, sequence_length)
        check(
            sequence_length + targets <= decoder.max_length,
            f"data.sequence_length is {sequence_length}, objective.rate {self.rate} and model.max_length "
            f"{decoder.max_length}: the model reads {sequence_length} tokens and {targets} of the query stream; set "
            f"max_length to at least {sequence_length + targets}",
        )

    def examples(self, model: ModelConfig, tokenizer: Tokenizer | None, sequence_length: int) -> "PermutationExamples":
        spared = () if tokenizer is None else (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
        return PermutationExamples(self, np.unique(np.array(spared, np.int32)))

    def batch(self, rows: Mapping[str, Any]) -> Batch:
        targets, at, order = rows["targets"], rows["target_positions"], rows["target_order"]
        segments = rows["target_segment_ids"]

        def both(content: Any, query: Any) -> Any:
            return np.concatenate([content, query], axis=1)

        sequence = SequenceInfo(
            positions_BT=both(rows["positions"], at),
            segment_ids_BT=both(rows["segment_ids"], segments),
            order_BT=both(rows["order"], order),
            targets_BT=both(np.zeros(rows["order"].shape, bool), np.ones(order.shape, bool)),
        )
        # The model replaces the embedding of a query-stream token, whatever its id.
        inputs = Inputs(both(rows["tokens"], np.zeros_like(targets)), sequence)
        return Batch(inputs, targets, (segments != 0).astype(np.float32))

    def training_flops(self, model: ModelConfig, sequence_length: int) -> float:
        if isinstance(model, EncoderDecoderConfig):
            raise ValueError("model is of type EncoderDecoderConfig: permutation language modelling trains encoders")
        targets = self.targets(sequence_length)
        length = sequence_length + targets
        # Only the query stream is scored.
        body = count.training_flops(dataclasses.replace(model, head=None), length)
        head = count.training_flops(model, length) - body
        return (length * body + targets * head) / sequence_length


class PermutationExamples(Examples):
    """Adds `order`, the rank of each token in the order of prediction, and `targets`, `target_positions`,
    `target_order` and `target_segment_ids` of the query stream, int32. Drops the last token, which only next-token
    prediction needs."""

    def __init__(self, config: PermutationLMConfig, spared: np.ndarray):
        """
        Args:
          spared: ids that are never predicted.
        """
        self._config, self._spared = config, spared

    def row(self, row: Row, generator: np.random.Generator) -> Row:
        row = {name: array[:-1] for name, array in row.items()}
        (eligible,) = np.nonzero((row["segment_ids"] != 0) & ~np.isin(row["tokens"], self._spared))
        count = self._config.targets(len(eligible)) if len(eligible) else 0
        # Tokens in the order of prediction. One order for the row gives one for each of its documents, because only
        # ranks within a document are compared.
        chosen = generator.permutation(eligible)[:count]
        row["order"] = np.zeros(len(row["tokens"]), np.int32)
        row["order"][chosen] = np.arange(1, count + 1)
        padding = (0, self._config.targets(len(row["tokens"])) - count)
        found = {
            "targets": row["tokens"],
            "target_positions": row["positions"],
            "target_order": row["order"],
            "target_segment_ids": row["segment_ids"],
        }
        return row | {name: np.pad(array[chosen], padding) for name, array in found.items()}

"""Sentence-order prediction: which of two consecutive parts of a document comes first?

Legend: B batch, T length.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.checks import check, check_one_of, given
from llm_jax.core.configclass import configclass
from llm_jax.core.metrics import Metrics, Ratio
from llm_jax.data.examples import Examples, Row, padding_row
from llm_jax.models.config import ModelConfig
from llm_jax.models.heads import ClassHead
from llm_jax.objectives.classification import class_losses
from llm_jax.objectives.labelled_text import LabelledBatch, LabelledTextObjective, Marks, inputs_of, marks, shortened
from llm_jax.tokenizers.boundaries import sentence_ends
from llm_jax.tokenizers.tokenizer import Tokenizer


@configclass
class SentenceOrderConfig(LabelledTextObjective):
    """Cross-entropy of whether two consecutive parts of a document are in their order, class 0, or swapped, class 1, as
    often (ALBERT, Lan et al. 2020, arXiv:1909.11942, 3.1).

    A row has one pair, <bos> part <sep> part <sep>, of a document that is drawn from those of the packed row with
    probabilities in proportion to their lengths. The longer part is shortened first, away from where they meet. ALBERT
    is also trained on masked tokens in the same step; a model here has one head.
    """

    units: str = "sentences"
    """Where a document is cut: "sentences" after one (`tokenizers.boundaries`), or "tokens" after any. A row without an
    end of a sentence has no loss; the metric 'pairs' is the share of rows that have one."""

    head = "sequence"

    def __post_init__(self):
        check_one_of("objective.units", self.units, ("sentences", "tokens"))

    def check(self, model: ModelConfig, sequence_length: int) -> None:
        """
        Raises:
          ValueError: for a model that does not meet `needs`, or whose head has not two classes; for sequences without
            room for a pair.
        """
        super().check(model, sequence_length)
        head = model.stacks[-1].head
        if isinstance(head, ClassHead):
            check(head.classes == 2, f"model.head.classes is {head.classes}: order and swapped are 2 classes; set it")
        check(sequence_length >= 5, f"data.sequence_length is {sequence_length}: a pair needs 5 tokens at least")

    def examples(
        self, model: ModelConfig, tokenizer: Tokenizer | None, sequence_length: int
    ) -> "SentenceOrderExamples":
        """
        Raises:
          ValueError: if data that are no text are to be cut into sentences.
        """
        ends = None
        if self.units == "sentences":
            message = "objective.units is 'sentences' and the data are no text: set it to 'tokens'"
            ends = sentence_ends(given(tokenizer, message))
        special = () if tokenizer is None else (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
        return SentenceOrderExamples(marks(model, tokenizer), np.array(special, np.int32), ends)

    def batch(self, rows: Mapping[str, Any]) -> LabelledBatch:
        return LabelledBatch(inputs_of(rows), rows["labels"], rows["weights"])

    def losses(self, logits: jax.Array, batch: LabelledBatch) -> Metrics:
        pairs = Ratio.of(batch.weights, jnp.ones_like(batch.weights))
        return class_losses(logits[:, 0], batch) | {"pairs": pairs}


class SentenceOrderExamples(Examples):
    """Makes of a packed row of T + 1 tokens a row of T with one pair: `tokens`, `types`, and the values `labels` and
    `weights`, which is 0 where there is no pair."""

    def __init__(self, marks: Marks, special: np.ndarray, ends: np.ndarray | None):
        """
        Args:
          special: ids that belong to no part.
          ends: ids that end a sentence; None: documents are cut anywhere.
        """
        self._marks, self._special, self._ends = marks, special, ends

    def row(self, row: Row, generator: np.random.Generator) -> Row:
        length = len(row["tokens"]) - 1
        found = padding_row(length) | {"types": np.zeros(length, np.int32)}
        text = (row["segment_ids"] != 0) & ~np.isin(row["tokens"], self._special)
        documents = [row["tokens"][text & (row["segment_ids"] == n)] for n in np.unique(row["segment_ids"][text])]
        documents = [document for document in documents if len(self._cuts(document))]
        swapped = int(generator.random() < 0.5)
        if documents:
            sizes = np.array([len(document) for document in documents])
            document = documents[generator.choice(len(documents), p=sizes / sizes.sum())]
            pair = self._pair(document, int(generator.choice(self._cuts(document))), length - 3)
            tokens, types = self._marks.joined(pair[::-1] if swapped else pair)
            count = len(tokens)
            found["tokens"][:count], found["types"][:count] = tokens, types
            found["segment_ids"][:count], found["positions"][:count] = 1, np.arange(count)
        labels, weights = np.array(swapped, np.int32), np.array(bool(documents), np.float32)
        return found | {"labels": labels, "weights": weights}

    def _cuts(self, document: np.ndarray) -> np.ndarray:
        """The numbers of tokens after which a document can be cut."""
        before = document[:-1]
        (places,) = np.nonzero(np.isin(before, self._ends) if self._ends is not None else np.ones(len(before), bool))
        return places + 1

    def _pair(self, document: np.ndarray, cut: int, limit: int) -> list[np.ndarray]:
        """The part before the cut and that after it, of `limit` tokens together."""
        first, second = shortened((cut, len(document) - cut), limit)
        return [document[cut - first : cut], document[cut : cut + second]]

"""What objectives on a text, or a pair of texts, with a label have in common: the sequence that an encoder reads.

    <bos> text <sep>                 token types 0
    <bos> text <sep> pair <sep>      token types 0 up to the first <sep>, then 1

as in BERT (Devlin et al. 2019, arXiv:1810.04805, 3 and figure 1). A row is one sequence.

Legend: B batch, T length, C classes.
"""

import abc
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import flax.struct
import jax
import numpy as np

from llm_jax.core.checks import check
from llm_jax.core.configclass import configclass
from llm_jax.core.metrics import Metrics, Ratio, metric_of
from llm_jax.data.examples import Row, TokenField
from llm_jax.data.record_examples import RecordExamples, RecordSequence, StructuredRecord
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.build import applied
from llm_jax.models.config import ModelConfig
from llm_jax.models.heads import ClassHead
from llm_jax.models.inputs import Inputs
from llm_jax.objectives import record_fields, special_tokens
from llm_jax.objectives.losses import balance
from llm_jax.objectives.objective import NO_MODELS, Models, Needs, Objective
from llm_jax.tokenizers.tokenizer import Tokenizer


@flax.struct.dataclass
class LabelledBatch:
    """Inputs and labels.

    Attributes:
      inputs: what the model reads.
      labels: one for each sequence [B] or token [B, T], or a tree of such arrays.
      weights: float32, for each sequence or token; 0 where there is no label.
    """

    inputs: Inputs
    labels: Any
    weights: Any


@configclass
class LabelledTextObjective(Objective):
    """Base of objectives with a `ClassHead`. Derive a configclass from it that makes `examples` and computes
    `losses`."""

    needs = Needs("bidirectional", (ClassHead,))
    predicts_text = False

    head: ClassVar[Literal["token", "span", "sequence"]]
    """What the model's head must score."""

    @abc.abstractmethod
    def losses(self, logits: jax.Array, batch: LabelledBatch) -> Metrics:
        """Metrics of which 'loss' is a `Ratio`, from the head's scores [B, T, C], or [B, 1, C] of whole sequences."""

    def check(self, model: ModelConfig, sequence_length: int) -> None:
        """
        Raises:
          ValueError: for a model that does not meet `needs`, or whose head scores something else.
        """
        super().check(model, sequence_length)
        head, name = model.stacks[-1].head, type(self).__name__
        if not isinstance(head, ClassHead):
            raise ValueError(f"objective {name} requires a ClassHead: change model.head")
        check(
            head.of == self.head,
            f"objective {name} requires scores of each {self.head}, and model.head.of is {head.of!r}: set it to "
            f"{self.head!r}",
        )
        check(
            head.of != "sequence" or head.token == "first",
            f"objective {name} pads sequences at their end, and model.head.token is {head.token!r}: set it to 'first'",
        )

    def special_tokens(self, sequence_length: int) -> tuple[str, ...]:
        return (special_tokens.SEPARATOR,)

    def scores(self, model: Any, params: Any, batch: LabelledBatch) -> jax.Array:
        """The head's scores, for a `Predictor`."""
        return applied(model, params, batch.inputs).logits_BTV

    def loss(
        self,
        model: Any,
        params: Any,
        batch: LabelledBatch,
        key: jax.Array | None = None,
        whole: Metrics | None = None,
        models: Models = NO_MODELS,
    ) -> tuple[jax.Array, Metrics]:
        """Sum over the labels. See `Objective`."""
        rngs = None if key is None else {"dropout": key}
        output = applied(model, params, batch.inputs, rngs=rngs)
        metrics = self.losses(output.logits_BTV, batch)
        weights_BT = batch.weights if batch.weights.ndim == 2 else batch.weights[:, None]
        balance_loss, routing = balance(output.aux, weights_BT, whole)
        return metric_of(metrics, "loss", Ratio).total + balance_loss, metrics | routing


class Marks:
    """Ids of the tokens that begin and separate the texts of a sequence."""

    def __init__(self, begin: int, separator: int):
        self.begin, self.separator = begin, separator

    def joined(self, texts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and types of a sequence, int32 [n] each."""
        tokens = [np.append(text, self.separator) for text in texts]
        types = np.repeat(np.arange(len(tokens)), [len(one) for one in tokens])
        return (
            np.concatenate([[self.begin], *tokens]).astype(np.int32),
            np.concatenate([[0], types]).astype(np.int32),
        )


def marks(model: ModelConfig, tokenizer: Tokenizer | None) -> Marks:
    """The special tokens of a sequence, of the tokenizer or, where it lacks them, of the model's vocabulary."""
    found = special_tokens.ids((special_tokens.SEPARATOR,), tokenizer, model.vocab_size or 0)
    return Marks(0 if tokenizer is None else tokenizer.bos_id, found[special_tokens.SEPARATOR])


def inputs_of(rows: Mapping[str, Any]) -> Inputs:
    """The inputs of an encoder, from rows with `types`."""
    return Inputs(rows["tokens"], SequenceInfo(rows["positions"], rows["segment_ids"], rows["types"]))


def shortened(lengths: Sequence[int], limit: int) -> list[int]:
    """Lengths of one or two texts that together have at most `limit` tokens: the longer is shortened first."""
    first, second = lengths if len(lengths) == 2 else (lengths[0], 0)
    second = min(second, max(limit // 2, limit - first))
    return [min(first, limit - second), second][: len(lengths)]


class LabelledTextExamples(RecordExamples):
    """Rows of `tokens`, `types` and the value `labels`. Derive a class from it that reads the label."""

    def __init__(self, fields: tuple[str, ...], marks: Marks, length: int, label: TokenField):
        """
        Args:
          fields: those with the text, and with its pair if there is one.
        """
        self._fields, self._marks = fields, marks
        self.parts = (*(f"text {number}" for number in range(len(fields))), "label")
        self.sequences, self.values = (RecordSequence(length, fields=(TokenField("types"),)),), (label,)

    @abc.abstractmethod
    def label(self, record: StructuredRecord) -> int:
        """The label, from 0 to 2^32 - 1.

        Raises:
          record_fields.Unusable: if there is no valid one.
        """

    @abc.abstractmethod
    def value(self, label: int) -> Any:
        """The value of `labels`, from what `label` returned."""

    def encode(self, records: Sequence[StructuredRecord], tokenizer: Tokenizer) -> list[tuple[np.ndarray, ...] | str]:
        read = [self._read(record) for record in records]
        ids = iter(tokenizer.encode_batch([text for one in read if not isinstance(one, str) for text in one[0]]))
        return [one if isinstance(one, str) else (*(next(ids) for _ in one[0]), np.array([one[1]])) for one in read]

    def _read(self, record: StructuredRecord) -> tuple[list[str], int] | str:
        try:
            return [record_fields.text(record, field) for field in self._fields], self.label(record)
        except record_fields.Unusable as reason:
            return str(reason)

    def lengths(self, parts: np.ndarray) -> np.ndarray:
        return parts[:, :-1].sum(axis=1, keepdims=True) + 1 + len(self._fields)

    def document(self, parts: Row, generator: np.random.Generator) -> Row:
        tokens, types = self._marks.joined([parts[name] for name in self.parts[:-1]])
        return {"tokens": tokens, "types": types, "labels": self.value(int(parts["label"][0]))}

    def truncated(self, parts: Row) -> Row:
        """The beginnings of the texts; the longer one is shortened first."""
        limit = self.sequences[0].length - 1 - len(self._fields)
        lengths = shortened([len(parts[name]) for name in self.parts[:-1]], limit)
        return parts | {name: parts[name][:length] for name, length in zip(self.parts, lengths, strict=False)}


def texts_of(document: str, text: str, pair: str | None) -> Iterable[str]:
    """The texts of a record on which a tokenizer is trained."""
    return record_fields.texts_of(document, (text,) if pair is None else (text, pair))

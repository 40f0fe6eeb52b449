"""Rows: what every source of training data comes down to, whatever it was made from."""

import abc
import dataclasses
from pathlib import Path
from typing import Protocol

import numpy as np

from llm_jax.core.configclass import configclass
from llm_jax.data.duplicates import DocumentSet
from llm_jax.data.examples import Examples, Field, Row
from llm_jax.data.splits import Part
from llm_jax.tokenizers.tokenizer import Tokenizer


class Rows(Protocol):
    """Rows without end: index i >= 0 is always the same row, whichever rows were read before."""

    def __getitem__(self, index: int) -> Row: ...


@dataclasses.dataclass(frozen=True)
class EvaluationRows:
    """An evaluation set: rows in which every token of it is a target exactly once, but for those that have nothing
    before them."""

    rows: Rows
    count: int
    """The set is the first `count` rows."""
    text_bytes: int | None
    """UTF-8 bytes of the text that the rows predict, for bits per byte; None where the rows are not text. The first
    token of a document that has no bos before it is not predicted, and its bytes do not count."""
    optimal_loss: float | None
    """Nats per counted target that no model can beat on average; None where it is not known."""


@dataclasses.dataclass(frozen=True)
class RowContext:
    """What a source must know to make rows."""

    tokenizer: Tokenizer | None
    """None suits synthetic sources only."""
    cache: Path
    """Folder under which tokenised text is kept."""
    sequence_length: int
    batch_size: int
    """Rows per step over all hosts; a mixture counts its steps by it."""
    seed: int
    examples: Examples = Examples()
    """What the objective makes of documents and rows."""


@configclass
class Source(abc.ABC):
    """What examples are made from: a corpus of text, or a synthetic task. Derive a configclass from it to use one of
    your own."""

    @abc.abstractmethod
    def build(self, context: RowContext) -> "RowSource":
        """The source, ready to be read.

        Raises:
          ValueError: if it needs a tokenizer and there is none, or files are missing.
        """


class RowSource(abc.ABC):
    """A source that is ready to be read."""

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """All tokens are below this."""

    @abc.abstractmethod
    def train(self) -> Rows:
        """Training rows, in the order in which they are trained on."""

    @abc.abstractmethod
    def evaluation(self, part: Part, max_bytes: int | None) -> dict[str, EvaluationRows]:
        """The evaluation sets of `part` by name; the name is '' where there is only one.

        A set of text is limited to a sample of `max_bytes` (see `splits.Limited`), unless that is None.
        """

    @abc.abstractmethod
    def manifest(self) -> dict:
        """What the rows are made from, as JSON: digests, documents, tokens and bytes."""

    def document_sets(self) -> dict[str, DocumentSet]:
        """The documents of every part by name, `<part>` or `<part>/<source>`, training first; none where rows are no
        text."""
        return {}

    def duplicates_left_out(self) -> int:
        """Documents that are not among those of `document_sets` because their text is another's. Reads all text."""
        return 0

    def empty_texts(self) -> int:
        """Documents without a character that were read, which their source's policy skips or keeps."""
        return 0


def whole_row(tokens: np.ndarray) -> Row:
    """A row that is one segment."""
    length = len(tokens)
    return {
        "tokens": tokens.astype(np.int32),
        "segment_ids": np.ones(length, np.int32),
        "positions": np.arange(length, dtype=np.int32),
    }


def padding_row(length: int, fields: tuple[Field, ...] = ()) -> Row:
    """A row without a single token."""
    row = {name: np.zeros(length, np.int32) for name in ("tokens", "segment_ids", "positions")}
    return row | {field.name: np.full(length, field.padding, field.dtype) for field in fields}

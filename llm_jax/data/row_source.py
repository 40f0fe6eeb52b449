"""Rows, and the interface of the sources that yield them."""

import abc
import dataclasses
from pathlib import Path
from typing import Protocol

import numpy as np

from llm_jax.core.configclass import configclass
from llm_jax.data.duplicates import DocumentSet
from llm_jax.data.examples import Examples, Row
from llm_jax.data.record_examples import RecordExamples
from llm_jax.data.splits import Part
from llm_jax.tokenizers.tokenizer import Tokenizer

AnyExamples = Examples | RecordExamples


class Rows(Protocol):
    """An infinite sequence of rows. Index i >= 0 is always the same row, whichever rows were read before."""

    def __getitem__(self, index: int) -> Row: ...


@dataclasses.dataclass(frozen=True)
class EvaluationRows:
    """An evaluation set: rows in which every token that has a predecessor is a target exactly once."""

    rows: Rows
    count: int
    """The set is the first `count` rows."""
    text_bytes: int | None
    """UTF-8 bytes of the predicted text, for bits per byte; None if the rows are not text. The first token of a
    document without bos is not predicted, and its bytes do not count."""
    optimal_loss: float | None
    """Lowest possible expected loss in nats per counted target; None if it is not known."""


@dataclasses.dataclass(frozen=True)
class RowContext:
    """Settings that a source needs to build rows."""

    tokenizer: Tokenizer | None
    """None is valid for synthetic sources only."""
    cache: Path
    """Folder of the cache of tokenised text."""
    sequence_length: int
    batch_size: int
    """Rows per step over all processes. A mixture converts steps to rows with it."""
    seed: int
    examples: AnyExamples = Examples()
    """How the objective transforms documents and rows."""

    @property
    def text_examples(self) -> Examples:
        """`examples`.

        Raises:
          ValueError: if they are made of records.
        """
        if isinstance(self.examples, Examples):
            return self.examples
        raise ValueError("the objective reads structured records, and data.source is plain text: use a RecordsConfig")

    @property
    def record_examples(self) -> RecordExamples:
        """`examples`.

        Raises:
          ValueError: if they are made of plain text.
        """
        if isinstance(self.examples, RecordExamples):
            return self.examples
        raise ValueError(
            "the objective trains on plain text, and data.source has structured records: use a CorpusConfig, or an "
            "objective that reads records"
        )


@configclass
class Source(abc.ABC):
    """A source of rows: a corpus of text, or a synthetic task. Derive a configclass from it to use your own source."""

    @abc.abstractmethod
    def build(self, context: RowContext) -> "RowSource":
        """The source, ready to be read.

        Raises:
          ValueError: if it needs a tokenizer and the context has none, or files are missing.
        """


class RowSource(abc.ABC):
    """A source that is ready to be read."""

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """All token ids are below this."""

    @abc.abstractmethod
    def train(self) -> Rows:
        """Training rows, in the order in which they are trained on."""

    @abc.abstractmethod
    def evaluation(self, part: Part, max_bytes: int | None) -> dict[str, EvaluationRows]:
        """The evaluation sets of `part` by name. A single set has the name ''.

        A set of text is limited to a sample of `max_bytes` (see `splits.Limited`), unless that is None.
        """

    @abc.abstractmethod
    def manifest(self) -> dict:
        """Identity of the data as JSON: digests, documents, tokens and bytes."""

    def document_sets(self) -> dict[str, DocumentSet]:
        """The documents of every part by name, `<part>` or `<part>/<source>`, training first. Empty if the rows are not
        text."""
        return {}

    def duplicates_left_out(self) -> int:
        """Number of documents left out of `document_sets` as duplicates. Reads all text."""
        return 0

    def record_counts(self) -> dict[str, int]:
        """Numbers of structured records by part, `<part>/records`, and of those that are left out or truncated,
        `<part>/invalid`, `<part>/skipped` and `<part>/truncated`. Empty without such records."""
        return {}

    def empty_texts(self) -> int:
        """Number of documents without a character, whether the reader's policy skips or keeps them."""
        return 0


def whole_row(tokens: np.ndarray) -> Row:
    """A row with one segment."""
    length = len(tokens)
    return {
        "tokens": tokens.astype(np.int32),
        "segment_ids": np.ones(length, np.int32),
        "positions": np.arange(length, dtype=np.int32),
    }

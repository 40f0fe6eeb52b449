"""From documents to rows of one length."""

import abc
import dataclasses
import functools

import numpy as np

from llm_jax.core import rng
from llm_jax.core.checks import check
from llm_jax.core.configclass import configclass
from llm_jax.data.built_documents import BuiltDocuments
from llm_jax.data.cache import TokenDocuments
from llm_jax.data.examples import Field
from llm_jax.data.row_source import Row, Rows, padding_row, whole_row

Documents = TokenDocuments | BuiltDocuments
"""Documents as they were tokenised, or as an objective changes them. Both have `len`, `lengths`, `offsets`, `total` and
`read`."""


@configclass
class Packing(abc.ABC):
    """How documents become rows. Derive a configclass from it to use a packing of your own."""

    @abc.abstractmethod
    def train(self, documents: Documents, sequence_length: int, seed: int, fields: tuple[Field, ...] = ()) -> Rows:
        """Rows of `sequence_length` + 1 tokens without end, each a pure function of (seed, index). `fields` are arrays
        beside the tokens that the documents have."""

    @abc.abstractmethod
    def evaluation(self, documents: Documents, sequence_length: int, fields: tuple[Field, ...] = ()) -> "PackedRows":
        """Rows in which each token is a target once, in the order of the source."""


@configclass
class PackedConfig(Packing):
    """Documents are shuffled anew for every epoch, laid end to end and cut into rows."""

    shuffle: bool = True
    """False: documents and rows come in the order of the source, in every epoch."""
    isolate: bool = True
    """Documents that share a row are segments of their own; False: a row is one segment."""

    def train(self, documents: Documents, sequence_length: int, seed: int, fields: tuple[Field, ...] = ()) -> Rows:
        return PackedRows(documents, sequence_length, seed, self.shuffle, self.isolate, fields)

    def evaluation(self, documents: Documents, sequence_length: int, fields: tuple[Field, ...] = ()) -> "PackedRows":
        return PackedRows(documents, sequence_length, 0, shuffle=False, isolate=self.isolate, fields=fields)


@configclass
class RandomWindowsConfig(Packing):
    """Each row is a window at a random place of one long stream, as in nanoGPT. Documents are not told apart."""

    def train(self, documents: Documents, sequence_length: int, seed: int, fields: tuple[Field, ...] = ()) -> Rows:
        """Raises ValueError for documents that an objective changes."""
        if not isinstance(documents, TokenDocuments):
            raise ValueError(
                "data.source.packing is RandomWindowsConfig, which reads windows of the tokenised text, and the "
                "objective changes documents before they are packed: take PackedConfig"
            )
        return RandomWindows(documents, sequence_length, seed)

    def evaluation(self, documents: Documents, sequence_length: int, fields: tuple[Field, ...] = ()) -> "PackedRows":
        return PackedRows(documents, sequence_length, 0, shuffle=False, isolate=False, fields=fields)


@dataclasses.dataclass(frozen=True)
class _Epoch:
    """The order of one epoch: D documents, N rows."""

    documents: np.ndarray | None
    """int64 [D], the documents in the order in which they are laid end to end; None: in the order of the source."""
    ends: np.ndarray
    """int64 [D], where each of them ends in that stream."""
    rows: np.ndarray | None
    """int64 [N], which row of the stream comes when; None: in the stream's order."""


class PackedRows:
    """Rows of `sequence_length` + 1 tokens from documents laid end to end.

    Row i of an epoch's stream is the slice [i T, i T + T + 1), where T = sequence_length: neighbours share one token,
    the last target of one and the first input of the next, so that every token but the stream's first is a target
    exactly once per epoch. The last row is filled up with padding. Within a row each part of a document is a segment
    (1, 2, ...) whose positions begin at 0.

    Indices go on without end, into later epochs, each in an order of its own that is a pure function of (seed, epoch).
    Nothing but the order of the two epochs read last is kept in memory: for each, 16 bytes a document and 8 a row.
    """

    def __init__(
        self,
        documents: Documents,
        sequence_length: int,
        seed: int,
        shuffle: bool = True,
        isolate: bool = True,
        fields: tuple[Field, ...] = (),
    ):
        """Raises ValueError if there is not even one target."""
        check(
            documents.total > 1,
            f"the documents hold {documents.total} tokens: at least 2 are needed to predict one from the other",
        )
        self._documents = documents
        self._sequence_length = sequence_length
        self._seed = seed
        self._shuffle = shuffle
        self._isolate = isolate
        self._fields = fields
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)

    @property
    def rows_per_epoch(self) -> int:
        return -(-(self._documents.total - 1) // self._sequence_length)

    @property
    def unpredicted(self) -> np.ndarray:
        """Ids that are no target in any row: the first of every document or, where documents are not told apart, the
        first of the stream in the order of the source. The first input of any other row is a target of the row before.
        """
        (with_tokens,) = np.nonzero(self._documents.lengths)
        first = with_tokens if self._isolate else with_tokens[:1]
        return self._documents.read(first, np.zeros_like(first), np.ones_like(first), epoch=0)["tokens"]

    def __getitem__(self, index: int) -> Row:
        number, place = divmod(index, self.rows_per_epoch)
        epoch = self._epoch(number if self._shuffle else 0)
        row = place if epoch.rows is None else int(epoch.rows[place])
        start = row * self._sequence_length
        stop = min(start + self._sequence_length + 1, self._documents.total)
        return self._row(epoch, number, start, stop)

    def _row(self, epoch: _Epoch, number: int, start: int, stop: int) -> Row:
        """The stream's tokens [start, stop), padded to a row."""
        first, last = np.searchsorted(epoch.ends, (start, stop - 1), side="right")
        parts = np.arange(first, last + 1) if epoch.documents is None else epoch.documents[first : last + 1]
        ends = epoch.ends[first : last + 1]
        offsets = self._documents.offsets
        begins = ends - (offsets[parts + 1] - offsets[parts])
        part_starts = np.maximum(begins, start)
        part_lengths = np.minimum(ends, stop) - part_starts
        stream = np.arange(start, stop)
        row, count = padding_row(self._sequence_length + 1, self._fields), stop - start
        found = self._documents.read(parts, part_starts - begins, part_starts - begins + part_lengths, number)
        for name, array in found.items():
            row[name][:count] = array
        if self._isolate:
            # Documents without tokens take no number.
            numbers = np.cumsum(part_lengths > 0)
            row["segment_ids"][:count] = np.repeat(numbers, part_lengths)
            row["positions"][:count] = stream - np.repeat(part_starts, part_lengths)
        else:
            row["segment_ids"][:count] = 1
            row["positions"][:count] = stream - start
        return row

    def _make_epoch(self, number: int) -> _Epoch:
        if not self._shuffle:
            return _Epoch(None, self._documents.offsets[1:], None)
        lengths = self._documents.lengths
        documents = rng.generator(self._seed, "documents", number).permutation(len(lengths))
        rows = rng.generator(self._seed, "rows", number).permutation(self.rows_per_epoch)
        ends = lengths[documents]
        return _Epoch(documents, np.cumsum(ends, out=ends), rows)


class RandomWindows:
    """Rows of `sequence_length` + 1 tokens, each at a uniformly random place: a pure function of (seed, index)."""

    def __init__(self, documents: TokenDocuments, sequence_length: int, seed: int):
        """Raises ValueError if the stream is shorter than one row."""
        check(
            documents.total > sequence_length,
            f"the documents hold {documents.total} tokens, fewer than one row of sequence_length + 1 = "
            f"{sequence_length + 1}: lower sequence_length or give more text",
        )
        self._tokens = documents.tokens
        self._sequence_length = sequence_length
        self._seed = seed

    def __getitem__(self, index: int) -> Row:
        generator = rng.generator(self._seed, "windows", index)
        start = int(generator.integers(len(self._tokens) - self._sequence_length))
        return whole_row(self._tokens[start : start + self._sequence_length + 1])

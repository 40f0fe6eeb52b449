"""Packs documents into rows of one length."""

import abc
import dataclasses
import functools

import numpy as np

from llm_jax.core import rng
from llm_jax.core.checks import check
from llm_jax.core.configclass import configclass
from llm_jax.data.built_documents import BuiltDocuments
from llm_jax.data.cache import TokenDocuments
from llm_jax.data.examples import TokenField, padding_row
from llm_jax.data.row_source import Row, Rows, whole_row

Documents = TokenDocuments | BuiltDocuments
"""Documents as tokenised, or as changed by an objective. Both have `len`, `lengths`, `offsets`, `total` and `read`."""


@configclass
class Packing(abc.ABC):
    """How documents are packed into rows. Derive a configclass from it to use your own packing."""

    @abc.abstractmethod
    def train(self, documents: Documents, sequence_length: int, seed: int, fields: tuple[TokenField, ...] = ()) -> Rows:
        """An infinite sequence of rows of `sequence_length` + 1 tokens, each a pure function of (seed, index). `fields`
        are the per-token arrays that the documents have in addition to the tokens."""

    @abc.abstractmethod
    def evaluation(
        self, documents: Documents, sequence_length: int, fields: tuple[TokenField, ...] = ()
    ) -> "PackedRows":
        """Rows in the order of the source, in which each token is a target once."""


@configclass
class PackedConfig(Packing):
    """Documents are shuffled for every epoch, concatenated and cut into rows."""

    shuffle: bool = True
    """False: documents and rows are in the order of the source in every epoch."""
    isolate: bool = True
    """True: each document in a row is a segment of its own. False: a row is one segment."""

    def train(self, documents: Documents, sequence_length: int, seed: int, fields: tuple[TokenField, ...] = ()) -> Rows:
        return PackedRows(documents, sequence_length, seed, self.shuffle, self.isolate, fields)

    def evaluation(
        self, documents: Documents, sequence_length: int, fields: tuple[TokenField, ...] = ()
    ) -> "PackedRows":
        return PackedRows(documents, sequence_length, 0, shuffle=False, isolate=self.isolate, fields=fields)


@configclass
class RandomWindowsConfig(Packing):
    """Each row is a window at a random offset of one token stream, as in nanoGPT. Document boundaries are ignored."""

    def train(self, documents: Documents, sequence_length: int, seed: int, fields: tuple[TokenField, ...] = ()) -> Rows:
        """Raises ValueError if the documents are changed by an objective."""
        if not isinstance(documents, TokenDocuments):
            raise ValueError(
                "data.source.packing is RandomWindowsConfig, which reads windows of the tokenised text, and the "
                "objective changes documents before packing: use PackedConfig"
            )
        return RandomWindows(documents, sequence_length, seed)

    def evaluation(
        self, documents: Documents, sequence_length: int, fields: tuple[TokenField, ...] = ()
    ) -> "PackedRows":
        return PackedRows(documents, sequence_length, 0, shuffle=False, isolate=False, fields=fields)


@dataclasses.dataclass(frozen=True)
class _Epoch:
    """The order of one epoch: D documents, N rows."""

    documents: np.ndarray | None
    """int64 [D], the order in which documents are concatenated; None: the order of the source."""
    ends: np.ndarray
    """int64 [D], the end of each document in the concatenated stream."""
    rows: np.ndarray | None
    """int64 [N], the order in which rows of the stream are read; None: the order of the stream."""


class PackedRows:
    """Rows of `sequence_length` + 1 tokens from concatenated documents.

    Row i of an epoch's stream is the slice [i T, i T + T + 1), where T = sequence_length. Consecutive rows share one
    token, the last target of one and the first input of the next. So every token but the stream's first is a target
    exactly once per epoch. The last row is padded. Within a row each part of a document is a segment (1, 2, ...) whose
    positions begin at 0.

    Indices are unbounded and continue into later epochs. The order of each epoch is a pure function of (seed, epoch).
    Only the orders of the two epochs read last are in memory: for each, 16 bytes per document and 8 per row.
    """

    def __init__(
        self,
        documents: Documents,
        sequence_length: int,
        seed: int,
        shuffle: bool = True,
        isolate: bool = True,
        fields: tuple[TokenField, ...] = (),
    ):
        """Raises ValueError if there is no target."""
        check(
            documents.total > 1,
            f"the documents have {documents.total} tokens: at least 2 are required, an input and a target; add text",
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
        """Ids that are no target in any row: the first of every document or, without `isolate`, the first of the stream
        in the order of the source. The first input of any other row is a target of the previous row."""
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
        """Tokens [start, stop) of the stream, padded to a row."""
        # The documents that the row touches, and where each of them begins in the stream.
        first, last = np.searchsorted(epoch.ends, (start, stop - 1), side="right")
        parts = np.arange(first, last + 1) if epoch.documents is None else epoch.documents[first : last + 1]
        ends = epoch.ends[first : last + 1]
        offsets = self._documents.offsets
        begins = ends - (offsets[parts + 1] - offsets[parts])
        # The first and the last of them may reach past the row.
        part_starts = np.maximum(begins, start)
        part_lengths = np.minimum(ends, stop) - part_starts
        stream = np.arange(start, stop)
        row, count = padding_row(self._sequence_length + 1, self._fields), stop - start
        found = self._documents.read(parts, part_starts - begins, part_starts - begins + part_lengths, number)
        for name, array in found.items():
            row[name][:count] = array
        if self._isolate:
            # Documents without tokens get no segment id.
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
    """Rows of `sequence_length` + 1 tokens at uniformly random offsets, each a pure function of (seed, index)."""

    def __init__(self, documents: TokenDocuments, sequence_length: int, seed: int):
        """Raises ValueError if the stream is shorter than one row."""
        check(
            documents.total > sequence_length,
            f"the documents have {documents.total} tokens, fewer than one row of sequence_length + 1 = "
            f"{sequence_length + 1}: lower sequence_length or add text",
        )
        self._tokens = documents.tokens
        self._sequence_length = sequence_length
        self._seed = seed

    def __getitem__(self, index: int) -> Row:
        generator = rng.generator(self._seed, "windows", index)
        start = int(generator.integers(len(self._tokens) - self._sequence_length))
        return whole_row(self._tokens[start : start + self._sequence_length + 1])

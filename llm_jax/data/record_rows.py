"""Rows of whole records: one each, or as many as fit."""

import functools

import numpy as np

from llm_jax.core import rng
from llm_jax.core.checks import check
from llm_jax.data.examples import Row
from llm_jax.data.record_documents import RecordDocuments
from llm_jax.data.record_examples import RecordExamples, RecordSequence


class RecordRows:
    """Rows of records, by an unbounded index that continues into later epochs.

    A row holds consecutive records of a fixed order, as many as fit into all of its sequences. Each record is a segment
    of its own (1, 2, ...) in all sequences. The order of records is drawn once, so that all epochs have the same rows,
    and the order of rows in every epoch; both are pure functions of (seed, epoch).
    """

    def __init__(
        self, documents: RecordDocuments, chosen: np.ndarray, examples: RecordExamples, packed: bool, seed: int | None
    ):
        """
        Args:
          chosen: int64, indices of the records of an epoch.
          packed: whether rows hold several records.
          seed: None: records and rows are in the order of the source.
        """
        self._documents, self._examples, self._seed = documents, examples, seed
        self._order = chosen if seed is None else rng.generator(seed, "records").permutation(chosen)
        self._limits = np.array([sequence.length for sequence in examples.sequences])
        lengths = np.minimum(examples.lengths(documents.lengths[self._order]), self._limits)
        self._starts = _next_fit(lengths, self._limits) if packed else np.arange(len(chosen) + 1)
        self._permutation = functools.lru_cache(maxsize=2)(self._permuted)

    @property
    def rows_per_epoch(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> Row:
        epoch, place = divmod(index, self.rows_per_epoch)
        row = place if self._seed is None else int(self._permutation(epoch)[place])
        found = [self._document(int(i), epoch) for i in self._order[self._starts[row] : self._starts[row + 1]]]
        return row_of(self._examples, found)

    def _document(self, index: int, epoch: int) -> Row:
        parts = self._documents[index]
        if (self._examples.lengths(self._documents.lengths[None, index]) > self._limits).any():
            parts = self._examples.truncated(parts)
        return self._examples.document(parts, rng.generator(self._seed or 0, f"record of epoch {epoch}", index))

    def _permuted(self, epoch: int) -> np.ndarray:
        return rng.generator(self._seed or 0, "record rows", epoch).permutation(self.rows_per_epoch)


def row_of(examples: RecordExamples, documents: list[Row]) -> Row:
    """A row of records, as `RecordExamples.document` makes them, padded; each is a segment of its own.

    Raises:
      ValueError: if they do not fit.
    """
    row = examples.padding(0)
    for sequence in examples.sequences:
        _fill(row, sequence, documents)
    return row | {field.name: np.asarray(documents[0][field.name], field.dtype) for field in examples.values}


def _next_fit(lengths: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Index of the first record of each row and, last, the number of records: int64 [rows + 1]. `lengths` is int64
    [records, sequences], each at most its limit."""
    ends = np.concatenate([np.zeros((1, lengths.shape[1]), np.int64), np.cumsum(lengths, axis=0)])
    starts = [0]
    while starts[-1] < len(lengths):
        most = ends[starts[-1]] + limits
        columns = zip(ends.T, most, strict=True)
        starts.append(min(int(np.searchsorted(column, limit, side="right")) - 1 for column, limit in columns))
    return np.array(starts)


def _fill(row: Row, sequence: RecordSequence, documents: list[Row]) -> None:
    """Writes the records into the arrays of one sequence."""
    names = [sequence.prefix + "tokens", *(field.name for field in sequence.fields)]
    lengths = [len(document[names[0]]) for document in documents]
    for name in names:
        joined = np.concatenate([document[name] for document in documents])
        check(
            len(joined) == sum(lengths) <= sequence.length,
            f"{name} of a row has {len(joined)} values, {names[0]} has {sum(lengths)} and the row {sequence.length}: "
            "`document` must return arrays as long as `lengths` says, and `truncated` must shorten them",
        )
        row[name][: len(joined)] = joined
    total = sum(lengths)
    row[sequence.prefix + "segment_ids"][:total] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    starts = np.cumsum(lengths) - lengths
    row[sequence.prefix + "positions"][:total] = np.arange(total) - np.repeat(starts, lengths)

"""`RecordExamples`: how an objective transforms structured records before they become a batch."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from llm_jax.data.examples import Row, TokenField
from llm_jax.tokenizers.tokenizer import Tokenizer


class StructuredRecord(NamedTuple):
    """A record."""

    name: str
    """For messages."""
    fields: Mapping[str, Any]
    """Values of JSON by field."""


@dataclasses.dataclass(frozen=True)
class RecordSequence:
    """A sequence of a row: the arrays `<prefix>tokens`, `<prefix>segment_ids` and `<prefix>positions`, int32 [length],
    and `fields`."""

    length: int
    """Tokens, padding included."""
    prefix: str = ""
    """Of the names of its arrays, such as 'encoder_'."""
    fields: tuple[TokenField, ...] = ()
    """Further arrays with one value for each token, by their whole names."""


class RecordExamples(abc.ABC):
    """The transforms between records and rows:

        record --encode--> parts, in the token cache --document--> sequences --packing--> row --row--> row of a batch

    All random choices must use the generator argument, which depends only on the seed and the index of the record or
    row.
    """

    parts: tuple[str, ...]
    """Names of the arrays of integers that `encode` makes of a record."""
    sequences: tuple[RecordSequence, ...]
    """The sequences of a row."""
    values: tuple[TokenField, ...] = ()
    """Arrays with one value for each row, such as a label. Such rows hold one record each."""

    @property
    @abc.abstractmethod
    def identity(self) -> str:
        """Text that, with the tokenizer, determines what `encode` makes of a record."""

    @abc.abstractmethod
    def encode(self, records: Sequence[StructuredRecord], tokenizer: Tokenizer) -> list[tuple[np.ndarray, ...] | str]:
        """For each record its `parts`, one-dimensional arrays of integers from 0 to 2^32 - 1; or the reason why no
        example can be made of it. It must be thread-safe."""

    @abc.abstractmethod
    def lengths(self, parts: np.ndarray) -> np.ndarray:
        """Tokens in each of the `sequences` of records, int64 [records, sequences], from the lengths of their parts,
        int64 [records, parts]."""

    @abc.abstractmethod
    def document(self, parts: Row, generator: np.random.Generator) -> Row:
        """The sequences of a record: `<prefix>tokens` and fields, each as long as `lengths` says, and `values`."""

    @abc.abstractmethod
    def truncated(self, parts: Row) -> Row:
        """Parts that are shortened so that the sequences of the record fit into a row."""

    def row(self, row: Row, generator: np.random.Generator) -> Row:
        """Transforms a packed row before rows are stacked. It may add arrays; the result must have the same arrays and
        lengths for all rows."""
        return row

    def padding(self, length: int) -> Row:
        """A row of padding only, as before `row`. `length` is that of rows of text, which these rows do not have."""
        found = {}
        for sequence in self.sequences:
            for name in ("tokens", "segment_ids", "positions"):
                found[sequence.prefix + name] = np.zeros(sequence.length, np.int32)
            found |= {field.name: np.full(sequence.length, field.padding, field.dtype) for field in sequence.fields}
        return found | {field.name: np.array(field.padding, field.dtype) for field in self.values}

"""Records in the token cache: each document is one record, as integers.

    [length of part 0, ..., length of part P - 2, part 0, ..., part P - 1]

A record of which no example can be made is an empty document.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np

from llm_jax.core.checks import check
from llm_jax.data.cache import TokenDocuments
from llm_jax.data.encoding import EncodedPieces, Encoding, Piece, joined
from llm_jax.data.examples import Row
from llm_jax.data.record_examples import RecordExamples, StructuredRecord
from llm_jax.data.sources import Document
from llm_jax.tokenizers.tokenizer import Tokenizer

InvalidRecord = Literal["error", "skip"]
"""Policy for a record of which no example can be made, such as one without a target. error: raise an error with its
name and the reason. skip: leave it out and count it."""


class RecordEncoding(Encoding):
    """Documents whose text is a JSON object, as the parts that an objective makes of them."""

    def __init__(self, tokenizer: Tokenizer, examples: RecordExamples, invalid: InvalidRecord):
        super().__init__(tokenizer)
        self._examples, self._invalid = examples, invalid

    @property
    def identity(self) -> dict[str, Any]:
        return {"records": self._examples.identity, "invalid": self._invalid}

    @property
    def bound(self) -> int:
        return 2**32

    def pieces(self, documents: Iterable[Document]) -> Iterator[Piece]:
        for document in documents:
            yield Piece(document.name, document.text, first=True, last=True)

    def encode(self, batch: list[Piece]) -> EncodedPieces:
        records = [StructuredRecord(piece.document, _fields(piece)) for piece in batch]
        found = self._examples.encode(records, self.tokenizer)
        return joined(batch, [self._integers(*one) for one in zip(records, found, strict=True)], self.bound)

    def _integers(self, record: StructuredRecord, parts: tuple[np.ndarray, ...] | str) -> np.ndarray:
        if isinstance(parts, str):
            check(
                self._invalid == "skip",
                f"record {record.name}: {parts}; correct or remove it, or set data.source.invalid to 'skip'",
            )
            return np.zeros(0, np.int64)
        return np.concatenate([[len(part) for part in parts[:-1]], *parts]).astype(np.int64)


class RecordDocuments:
    """The records of a part of the data."""

    def __init__(self, documents: TokenDocuments, examples: RecordExamples):
        self._documents, self._parts = documents, examples.parts
        starts, sizes, count = documents.offsets[:-1], documents.lengths, len(examples.parts)
        self.lengths = np.zeros((len(documents), count), np.int64)
        """int64 [records, parts]; all 0 for a record that is left out."""
        (self.usable,) = np.nonzero(sizes)
        """Indices of the other records."""
        header = documents.tokens[(starts[self.usable, None] + np.arange(count - 1)).reshape(-1)]
        self.lengths[self.usable, :-1] = header.reshape(len(self.usable), count - 1)
        self.lengths[self.usable, -1] = sizes[self.usable] - (count - 1) - self.lengths[self.usable, :-1].sum(axis=1)

    @property
    def digest(self) -> str:
        """Sixteen hex digits: hash of the integers."""
        return self._documents.digest

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> Row:
        """The parts of a record by name, int64."""
        integers = self._documents[index].astype(np.int64)[len(self._parts) - 1 :]
        return dict(zip(self._parts, np.split(integers, np.cumsum(self.lengths[index, :-1])), strict=True))


def _fields(piece: Piece) -> dict[str, Any]:
    try:
        found = json.loads(piece.text)
    except ValueError as error:
        raise ValueError(
            f"record {piece.document} is no JSON ({error}): set `field` of the reader to None, so that it reads whole "
            "records"
        ) from error
    check(
        isinstance(found, dict),
        f"record {piece.document} is a {type(found).__name__}: a JSON object is required; set `field` of the reader to "
        "None, so that it reads whole records",
    )
    return found

"""`Examples`: how an objective transforms documents and packed rows before they become a batch."""

import dataclasses

import numpy as np

Row = dict[str, np.ndarray]
"""One packed row: `tokens`, `segment_ids` (0 is padding, documents are 1, 2, ...) and `positions` (from 0 in each
document), int32, each [sequence_length + 1]; and the fields of `Examples`. All rows of a run have the same arrays."""


@dataclasses.dataclass(frozen=True)
class TokenField:
    """An array with one value for each token, such as a loss mask."""

    name: str
    dtype: str = "int32"
    """Name of a numpy dtype."""
    padding: float = 0
    """Value at padding positions."""


class Examples:
    """The two transforms between tokenised text and a batch: `document` before packing, `row` after it. The base class
    changes nothing.

    Rows are dicts of arrays of length `sequence_length` + 1: `tokens`, `segment_ids`, `positions` and `fields`. All
    random choices must use the generator argument. It depends only on the seed and the index of the document or row,
    so results do not depend on processes, workers or restarts.
    """

    fields: tuple[TokenField, ...] = ()
    """Arrays that `document` returns in addition to `tokens`. They are packed in the same way as the tokens."""

    def document(self, tokens: np.ndarray, draw: float, generator: np.random.Generator) -> Row:
        """Transforms a document before packing.

        Args:
          tokens: token ids of the document [n].
          draw: uniform in [0, 1), the same in every epoch, so that all epochs have the same number of tokens.
          generator: differs between epochs.

        Returns:
          `tokens` and `fields`, each of the length that `lengths` returns for this document.
        """
        return {"tokens": tokens}

    def lengths(self, lengths: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Lengths of documents after `document`, from their lengths before it and their draws: int64 [documents]."""
        return lengths

    def row(self, row: Row, generator: np.random.Generator) -> Row:
        """Transforms a packed row before rows are stacked. It may add arrays and change lengths; the result must have
        the same arrays and lengths for all rows."""
        return row

    def padding(self, length: int) -> Row:
        """A row of padding only, of `length` tokens, as before `row`."""
        return padding_row(length, self.fields)

    @property
    def changes_documents(self) -> bool:
        """Whether `document` is overridden. If so, the token cache is read document by document."""
        return type(self).document is not Examples.document


def padding_row(length: int, fields: tuple[TokenField, ...] = ()) -> Row:
    """A row of padding only."""
    row = {name: np.zeros(length, np.int32) for name in ("tokens", "segment_ids", "positions")}
    return row | {field.name: np.full(length, field.padding, field.dtype) for field in fields}

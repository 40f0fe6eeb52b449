"""Examples: what an objective makes of documents and of packed rows before they become a batch."""

import dataclasses

import numpy as np

Row = dict[str, np.ndarray]
"""One example: `tokens`, `segment_ids` (0 is padding, documents are 1, 2, ...) and `positions` (from 0 in each
document), int32, each of length sequence_length + 1, and the fields of `Examples`; all rows of a run have the same."""


@dataclasses.dataclass(frozen=True)
class Field:
    """An array beside `tokens` with one value for each token, such as a mask of the loss."""

    name: str
    dtype: str = "int32"
    """A dtype of numpy."""
    padding: float = 0
    """Its value where there is no token."""


class Examples:
    """The two stages between tokenised text and a batch: `document` before packing, `row` after it. As it stands it
    changes nothing.

    Rows are dicts of arrays of one length, `sequence_length` + 1: `tokens`, `segment_ids`, `positions` and `fields`.
    Every random choice comes from the generator that is passed, which depends on the seed and on the number of the
    document or row alone: results do not depend on processes, workers or restarts.
    """

    fields: tuple[Field, ...] = ()
    """Arrays that `document` returns beside `tokens`. Packing lays them out as it does the tokens."""

    def document(self, tokens: np.ndarray, draw: float, generator: np.random.Generator) -> Row:
        """What becomes of a document before it is packed.

        Args:
          tokens: its ids [n].
          draw: uniform in [0, 1), the same in every epoch, so that all epochs have equally many tokens.
          generator: differs by epoch.

        Returns:
          `tokens` and `fields`, each of the length that `lengths` says.
        """
        return {"tokens": tokens}

    def lengths(self, lengths: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Number of tokens of documents after `document`, from those before it and their draws; int64 [documents]."""
        return lengths

    def row(self, row: Row, generator: np.random.Generator) -> Row:
        """What becomes of a packed row before rows are stacked. It may add arrays and change lengths; all rows must
        have the same."""
        return row

    @property
    def changes_documents(self) -> bool:
        """Whether `document` is more than the identity, so that token caches are read document by document."""
        return type(self).document is not Examples.document

"""Where tokens stand, and which keys a query may see.

Legend: B batch, T query length, S key length.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class Placement:
    """Where the tokens of a row stand.

    Attributes:
      positions_BT: int32, counted from the start of each document.
      segment_ids_BT: int32, the document a token belongs to; 0 is padding, which nothing sees. None: every row is
        one document without padding, and a cheaper mask serves.
    """

    positions_BT: jax.Array
    segment_ids_BT: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Causal:
    """A token sees itself and what stands before it in its document."""

    def within(self, row: Placement, rows: slice, columns: slice) -> jax.Array:
        """Which tokens `columns` of a row its tokens `rows` see: boolean [B or 1, rows, columns].

        Within a row the order of tokens is the order of positions, so the causal part is a constant.
        """
        earlier = np.arange(rows.start, rows.stop)[:, None] >= np.arange(columns.start, columns.stop)
        return _same_document(row.segment_ids_BT, row.segment_ids_BT, rows, columns) & earlier

    def across(self, queries: Placement, slots: Placement) -> jax.Array:
        """Which slots of a cache new tokens see, themselves among them: boolean [B, T, S]."""
        earlier = queries.positions_BT[:, :, None] >= slots.positions_BT[:, None, :]
        return _same_document(queries.segment_ids_BT, slots.segment_ids_BT) & earlier

    def columns(self, rows: slice, length: int) -> slice:
        """The columns outside which tokens `rows` of a row of `length` see nothing."""
        return slice(0, rows.stop)

    def pairs(self, length: int) -> float:
        """Mean number of keys that a query of a row of `length` tokens sees."""
        return (length + 1) / 2


@dataclasses.dataclass(frozen=True)
class Bidirectional:
    """A token sees all of its document."""

    def within(self, row: Placement, rows: slice, columns: slice) -> jax.Array:
        """Which tokens `columns` of a row its tokens `rows` see: boolean [B or 1, rows, columns]."""
        return _same_document(row.segment_ids_BT, row.segment_ids_BT, rows, columns)

    def across(self, queries: Placement, slots: Placement) -> jax.Array:
        """Which slots of a cache new tokens see, themselves among them: boolean [B, T, S]."""
        return _same_document(queries.segment_ids_BT, slots.segment_ids_BT)

    def columns(self, rows: slice, length: int) -> slice:
        """The columns outside which tokens `rows` of a row of `length` see nothing."""
        return slice(0, length)

    def pairs(self, length: int) -> float:
        """Mean number of keys that a query of a row of `length` tokens sees."""
        return length


Mask = Causal | Bidirectional


def _same_document(
    queries_BT: jax.Array | None, keys_BS: jax.Array | None, rows: slice = slice(None), columns: slice = slice(None)
) -> jax.Array:
    if queries_BT is None:
        return jnp.ones((1, 1, 1), bool)
    keys_BS = keys_BS[:, None, columns]
    return (queries_BT[:, rows, None] == keys_BS) & (keys_BS != 0)

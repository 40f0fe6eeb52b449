"""Where tokens stand, and which keys a query may see.

Legend: B batch, T query length, S key length.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp


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

    def allowed(self, queries: Placement, keys: Placement) -> jax.Array:
        """Boolean [B or 1, T, S]."""
        return _same_document(queries, keys) & _not_later(queries, keys)

    def pairs(self, length: int) -> float:
        """Mean number of keys that a query of a row of `length` tokens sees."""
        return (length + 1) / 2


@dataclasses.dataclass(frozen=True)
class Bidirectional:
    """A token sees all of its document."""

    def allowed(self, queries: Placement, keys: Placement) -> jax.Array:
        """Boolean [B or 1, T, S]."""
        return _same_document(queries, keys)

    def pairs(self, length: int) -> float:
        """Mean number of keys that a query of a row of `length` tokens sees."""
        return length


Mask = Causal | Bidirectional


def _not_later(queries: Placement, keys: Placement) -> jax.Array:
    if queries is keys and queries.segment_ids_BT is None:
        # One document a row: a constant that the compiler can fold, whatever the positions.
        length = queries.positions_BT.shape[1]
        return jnp.tril(jnp.ones((1, length, length), bool))
    return queries.positions_BT[:, :, None] >= keys.positions_BT[:, None, :]


def _same_document(queries: Placement, keys: Placement) -> jax.Array:
    if queries.segment_ids_BT is None:
        return jnp.ones((1, 1, 1), bool)
    same = queries.segment_ids_BT[:, :, None] == keys.segment_ids_BT[:, None, :]
    return same & (keys.segment_ids_BT[:, None, :] != 0)

"""Where tokens stand, and which keys a query may see.

Legend: B batch, T query length, S key length.
"""

import abc
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.checks import check_positive_if_given, given
from llm_jax.core.configclass import configclass


@flax.struct.dataclass
class Placement:
    """Where the tokens of a row stand.

    Attributes:
      positions_BT: int32, counted from the start of each document.
      segment_ids_BT: int32, the document a token belongs to; 0 is padding, which nothing sees. None: every row is
        one document without padding, and a cheaper mask serves.
      types_BT: int32, which part of its document a token belongs to, such as the first or second of BERT's sentences.
        None: all to part 0.
      order_BT: int32, rank of a token in the order in which its document is predicted. Rank 0: what is given, which all
        tokens see. None: all is given.
      targets_BT: bool, whether a token asks what stands at its position: its rank is that of the token it asks for, it
        has a vector that is no token's, and nothing sees it. None: no token asks.
      fixed_lengths_BT: int32, what `lengths_BT` is where the caller defines it otherwise. None: it is computed.
    """

    positions_BT: jax.Array
    segment_ids_BT: jax.Array | None = None
    types_BT: jax.Array | None = None
    order_BT: jax.Array | None = None
    targets_BT: jax.Array | None = None
    fixed_lengths_BT: jax.Array | None = None

    @property
    def lengths_BT(self) -> jax.Array:
        """int32 [B, T] or [B, 1], the length of a token's document: one more than the last position of
        its tokens, padding and other documents left out. Every rule that depends on the length of a sequence reads it
        here, so that results do not depend on padding, nor on the rest of the batch. Padding has the length 0."""
        if self.fixed_lengths_BT is not None:
            return self.fixed_lengths_BT
        ends_BT = self.positions_BT + 1
        if self.segment_ids_BT is None:
            return jnp.max(ends_BT, axis=1, keepdims=True)
        same_BTS = _same_document(self.segment_ids_BT, self.segment_ids_BT)
        return jnp.max(jnp.where(same_BTS, ends_BT[:, None, :], 0), axis=2)

    @property
    def documents_BT(self) -> jax.Array:
        """`segment_ids_BT` of a placement that has them. ValueError for one that has none."""
        return given(self.segment_ids_BT, "the placement has no segment_ids_BT: give the document of each token")

    @property
    def real_BT(self) -> jax.Array:
        """bool, whether a token is no padding."""
        ids_BT = self.segment_ids_BT
        return jnp.ones(self.positions_BT.shape, bool) if ids_BT is None else ids_BT != 0

    def part(self, places: slice | jax.Array) -> "Placement":
        """The tokens at `places` of every row: a slice, or [n] int32; a place past the last is the last."""
        take = lambda x: x[:, places] if isinstance(places, slice) else jnp.take(x, places, axis=1, mode="clip")  # noqa: E731
        return jax.tree.map(take, self)


@configclass
class Mask(abc.ABC):
    """Which tokens a token may read. Derive a configclass from it to use one of your own."""

    causal: ClassVar[bool] = False
    """Whether no token reads a later one."""

    @abc.abstractmethod
    def across(self, queries: Placement, keys: Placement) -> jax.Array:
        """Which keys the queries see: boolean, [B, T, S] or with 1 in the place of B, T or S. No query sees a key of
        another document, or padding."""

    def columns(self, rows: slice, length: int) -> slice:
        """The columns outside which tokens `rows` of a sequence of `length` see nothing."""
        return slice(0, length)

    @abc.abstractmethod
    def pairs(self, length: int) -> float:
        """Mean number of keys that a query of a sequence of `length` tokens sees."""


@configclass
class Causal(Mask):
    """A token sees itself and what stands before it in its document."""

    causal = True

    window: int | None = None
    """Number of tokens it sees, itself among them (Child et al. 2019, arXiv:1904.10509; Beltagy et al. 2020,
    arXiv:2004.05150, 3.1); None: all of them."""

    def __post_init__(self):
        check_positive_if_given(window=self.window)

    def across(self, queries: Placement, keys: Placement) -> jax.Array:
        """Which keys the queries see: boolean [B or 1, T, S]."""
        distance = queries.positions_BT[:, :, None] - keys.positions_BT[:, None, :]
        return _same_document(queries.segment_ids_BT, keys.segment_ids_BT) & self._reaches(distance)

    def columns(self, rows: slice, length: int) -> slice:
        """The columns outside which tokens `rows` of a row of `length` see nothing."""
        return slice(0 if self.window is None else max(0, rows.start - self.window + 1), rows.stop)

    def pairs(self, length: int) -> float:
        """Mean number of keys that a query of a row of `length` tokens sees."""
        window = length if self.window is None else min(self.window, length)
        return window - window * (window - 1) / (2 * length)

    def _reaches(self, distance: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
        """Whether a query sees a key of its document that stands `distance` before it."""
        return (distance >= 0) if self.window is None else (distance >= 0) & (distance < self.window)


@configclass
class Bidirectional(Mask):
    """A token sees all of its document."""

    def across(self, queries: Placement, keys: Placement) -> jax.Array:
        """Which keys the queries see: boolean [B or 1, T or 1, S or 1]."""
        return _same_document(queries.segment_ids_BT, keys.segment_ids_BT)

    def pairs(self, length: int) -> float:
        """Mean number of keys that a query of a row of `length` tokens sees."""
        return length


@configclass
class Permuted(Mask):
    """A token sees what comes before it in the order of prediction, whichever side of it that stands, and itself; one
    that asks does not see the token it asks for (Yang et al. 2019, arXiv:1906.08237, 2.2 and 2.3).

    Tokens of one rank, but for rank 0, do not see one another. Without an order every token sees all of its document.
    """

    def across(self, queries: Placement, keys: Placement) -> jax.Array:
        """Which keys the queries see: boolean [B or 1, T or 1, S or 1]."""
        seen = _same_document(queries.segment_ids_BT, keys.segment_ids_BT)
        if keys.targets_BT is not None:
            seen &= ~keys.targets_BT[:, None, :]
        if keys.order_BT is None:
            return seen
        order_B1S = keys.order_BT[:, None, :]
        order_BT = given(queries.order_BT, "keys have an order of prediction and queries have none: give both one")
        same = queries.positions_BT[:, :, None] == keys.positions_BT[:, None, :]
        if queries.targets_BT is not None:
            same &= ~queries.targets_BT[:, :, None]
        return seen & ((order_B1S == 0) | (order_B1S < order_BT[:, :, None]) | same)

    def pairs(self, length: int) -> float:
        """Mean number of keys that a query of a row of `length` tokens sees, without an order."""
        return length


def _same_document(queries_BT: jax.Array | None, keys_BS: jax.Array | None) -> jax.Array:
    if queries_BT is None:
        return jnp.ones((1, 1, 1), bool)
    keys_B1S = given(keys_BS, "queries have segment ids and keys have none: give both some")[:, None, :]
    return (queries_BT[:, :, None] == keys_B1S) & (keys_B1S != 0)

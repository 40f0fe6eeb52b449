"""Attention masks: which keys a query may read.

Legend: B batch, T query length, S key length.
"""

import abc
from typing import ClassVar

import jax
import numpy as np

from llm_jax.core.checks import check_not_negative, check_positive_if_given, given
from llm_jax.core.configclass import configclass
from llm_jax.layers.sequence import SequenceInfo, same_document


@configclass
class Mask(abc.ABC):
    """Which tokens a token may attend to. To add a mask, derive a configclass from it."""

    causal: ClassVar[bool] = False
    """Whether the mask is causal."""

    @abc.abstractmethod
    def across(self, queries: SequenceInfo, keys: SequenceInfo) -> jax.Array:
        """Which keys the queries may attend to: boolean [B or 1, T or 1, S or 1]. A query never attends to another
        document or to padding."""

    def columns(self, rows: slice, length: int) -> slice:
        """The range of keys that contains all keys allowed for the queries `rows` of a sequence of `length` tokens."""
        return slice(0, length)

    @abc.abstractmethod
    def pairs(self, length: int) -> float:
        """Mean number of allowed keys per query of a sequence of `length` tokens."""


@configclass
class Causal(Mask):
    """A token attends to itself and to earlier tokens of its document."""

    causal = True

    window: int | None = None
    """Sliding window: number of tokens a token attends to, including itself (Child et al. 2019, arXiv:1904.10509;
    Beltagy et al. 2020, arXiv:2004.05150, 3.1); None: all of them."""

    def __post_init__(self):
        check_positive_if_given(window=self.window)

    def across(self, queries: SequenceInfo, keys: SequenceInfo) -> jax.Array:
        """Which keys the queries may attend to: boolean [B or 1, T, S]."""
        distance = queries.positions_BT[:, :, None] - keys.positions_BT[:, None, :]
        return same_document(queries.segment_ids_BT, keys.segment_ids_BT) & self._reaches(distance)

    def columns(self, rows: slice, length: int) -> slice:
        """The range of keys that contains all keys allowed for the queries `rows` of a sequence of `length` tokens."""
        return slice(0 if self.window is None else max(0, rows.start - self.window + 1), rows.stop)

    def pairs(self, length: int) -> float:
        """Mean number of allowed keys per query of a sequence of `length` tokens."""
        # The mean over i of min(i, window): the first queries have fewer keys before them than the window.
        window = length if self.window is None else min(self.window, length)
        return window - window * (window - 1) / (2 * length)

    def _reaches(self, distance: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
        """Whether a query may attend to a key of its document that is `distance` positions earlier."""
        return (distance >= 0) if self.window is None else (distance >= 0) & (distance < self.window)


@configclass
class PrefixCausal(Mask):
    """A token attends to itself, to earlier tokens of its document and to the whole prefix of its document, so that the
    tokens of the prefix attend to one another in both directions (Liu et al. 2018, arXiv:1801.10198, 4.2.3; Raffel et
    al. 2020, arXiv:1910.10683, 3.2.1 and figure 3). Without a prefix it is `Causal()`.

    Kernels that skip masked blocks skip none, because lengths of prefixes are known only when the program runs. Tokens
    that continue a KV cache are causal; a prefix must be within one call.
    """

    causal = True

    def across(self, queries: SequenceInfo, keys: SequenceInfo) -> jax.Array:
        """Which keys the queries may attend to: boolean [B or 1, T, S]."""
        seen = queries.positions_BT[:, :, None] >= keys.positions_BT[:, None, :]
        if keys.prefix_BT is not None:
            seen = seen | keys.prefix_BT[:, None, :]
        return same_document(queries.segment_ids_BT, keys.segment_ids_BT) & seen

    def pairs(self, length: int) -> float:
        """Mean number of allowed keys per query of a sequence of `length` tokens, without a prefix."""
        return (length + 1) / 2


@configclass
class Bidirectional(Mask):
    """A token attends to its whole document."""

    def across(self, queries: SequenceInfo, keys: SequenceInfo) -> jax.Array:
        """Which keys the queries may attend to: boolean [B or 1, T or 1, S or 1]."""
        return same_document(queries.segment_ids_BT, keys.segment_ids_BT)

    def pairs(self, length: int) -> float:
        """Mean number of allowed keys per query of a sequence of `length` tokens."""
        return length


@configclass
class BidirectionalWindow(Mask):
    """A token attends to the tokens of its document on both sides that are at most `reach` positions away (Beltagy et
    al. 2020, arXiv:2004.05150, 3.1)."""

    reach: int
    """Largest distance between a token and those that it attends to."""

    def __post_init__(self):
        check_not_negative(reach=self.reach)

    def across(self, queries: SequenceInfo, keys: SequenceInfo) -> jax.Array:
        """Which keys the queries may attend to: boolean [B or 1, T, S]."""
        distance = queries.positions_BT[:, :, None] - keys.positions_BT[:, None, :]
        near = (distance <= self.reach) & (distance >= -self.reach)
        return same_document(queries.segment_ids_BT, keys.segment_ids_BT) & near

    def columns(self, rows: slice, length: int) -> slice:
        """The range of keys that contains all keys allowed for the queries `rows` of a sequence of `length` tokens."""
        return slice(max(0, rows.start - self.reach), min(length, rows.stop + self.reach))

    def pairs(self, length: int) -> float:
        """Mean number of allowed keys per query of a sequence of `length` tokens."""
        reach = min(self.reach, length - 1)
        return 1 + 2 * reach - reach * (reach + 1) / length


@configclass
class Permuted(Mask):
    """A token attends to itself and to tokens that precede it in the factorisation order, on either side. A
    query-stream token does not attend to the token at its own position (Yang et al. 2019, arXiv:1906.08237, 2.2 and
    2.3).

    Tokens of equal rank in the order do not attend to one another, except for rank 0. Without an order every token
    attends to its whole document.
    """

    def across(self, queries: SequenceInfo, keys: SequenceInfo) -> jax.Array:
        """Which keys the queries may attend to: boolean [B or 1, T or 1, S or 1]."""
        seen = same_document(queries.segment_ids_BT, keys.segment_ids_BT)
        # No token reads the query stream.
        if keys.targets_BT is not None:
            seen &= ~keys.targets_BT[:, None, :]
        if keys.order_BT is None:
            return seen
        order_B1S = keys.order_BT[:, None, :]
        order_BT = given(queries.order_BT, "keys have a prediction order and queries have none: set order_BT for both")
        # The content stream reads its own token. The query stream predicts that token and must not read it.
        same = queries.positions_BT[:, :, None] == keys.positions_BT[:, None, :]
        if queries.targets_BT is not None:
            same &= ~queries.targets_BT[:, :, None]
        return seen & ((order_B1S == 0) | (order_B1S < order_BT[:, :, None]) | same)

    def pairs(self, length: int) -> float:
        """Mean number of allowed keys per query of a sequence of `length` tokens, without an order."""
        return length

"""Mask, bias, sink and dropout inputs of one attention call.

Legend: B batch, T query length, S key length, N heads, R buckets of relative positions.
"""

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import numpy as np

from llm_jax.core.checks import given
from llm_jax.layers.attention.masks import Mask
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.sequence import SequenceInfo

Indices = slice | jax.Array
"""A subset of the T queries or S keys: a slice, or indices int32 [n], which may be traced."""
WHOLE = slice(None)


@flax.struct.dataclass
class Drop:
    """Dropout of the attention weights (Srivastava et al. 2014): each is zero with probability `rate`, and all others
    are divided by 1 - rate."""

    key: jax.Array
    rate: float = flax.struct.field(pytree_node=False)

    def kept(self, shape: tuple[int, ...], first: int = 0) -> jax.Array:
        """Boolean, which weights of a block are kept. `first`, the index of its first query, varies the random key."""
        return jax.random.bernoulli(jax.random.fold_in(self.key, first), 1 - self.rate, shape)


def drop_of(module: nn.Module, rate: float) -> Drop | None:
    """Dropout with the module's random key `dropout`; None without such a key or if `rate` is 0."""
    return Drop(module.make_rng("dropout"), rate) if rate and module.has_rng("dropout") else None


@flax.struct.dataclass
class Pairs:
    """Mask, bias and sink inputs of an attention kernel for T queries and S keys.

    Attributes:
      queries: positions and segment ids of the T queries.
      slots: positions and segment ids of the S keys; None: queries and keys are of the same tokens.
      bias_RN: the learned bias table, if `scores` has one.
      sink_N: float32, the attention sinks, if `scores` has them.
      heads: total number of heads, if the arrays, table and sinks hold a subset of the heads; None: they hold all.
      first_head: int32 scalar, index of the first head that they hold.
      drop: dropout of the attention weights; None: no dropout.
    """

    mask: Mask = flax.struct.field(pytree_node=False)
    queries: SequenceInfo
    slots: SequenceInfo | None
    scores: ScoresConfig = flax.struct.field(pytree_node=False)
    bias_RN: jax.Array | None = None
    sink_N: jax.Array | None = None
    heads: int | None = flax.struct.field(pytree_node=False, default=None)
    first_head: jax.Array | None = None
    drop: Drop | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """T and S."""
        queries, keys = self._numbered
        return queries.positions_BT.shape[1], keys.positions_BT.shape[1]

    @property
    def whole_rows(self) -> bool:
        """Whether this is self-attention over unpacked sequences without padding: the mask needs no segment ids."""
        return self.slots is None and self.queries.segment_ids_BT is None

    def columns(self, rows: slice) -> slice:
        """The range of keys that contains all keys allowed for the queries `rows`."""
        length, slots = self.shape
        return self.mask.columns(rows, length) if self.slots is None else slice(0, slots)

    def allowed(self, rows: Indices = WHOLE, columns: Indices = WHOLE) -> jax.Array:
        """Which keys of `columns` the queries `rows` may attend to: boolean [B or 1, rows or 1, columns or 1]."""
        queries, keys = self._numbered
        return self.mask.across(queries.part(rows), keys.part(columns))

    def bias(self, heads: int, rows: Indices = WHOLE, columns: Indices = WHOLE) -> jax.Array | None:
        """Bias of the scores, float32 [B or 1, N, rows, columns]; None without a bias."""
        queries, keys = self._numbered
        bias = self.scores.across(self.heads or heads, queries.part(rows), keys.part(columns), self.bias_RN)
        # A bias without a table, such as ALiBi's slopes, depends on the total number of heads: it is computed for all
        # of them, and the heads of this device are cut out. A table holds only the heads of this device.
        if bias is None or bias.shape[1] == heads:
            return bias
        return jax.lax.dynamic_slice_in_dim(
            bias, given(self.first_head, "pairs have `heads` and no `first_head`: set both"), heads, axis=1
        )

    @property
    def _numbered(self) -> tuple[SequenceInfo, SequenceInfo]:
        """Positions and segment ids of queries and keys.

        In self-attention, positions are replaced by indices in the sequence. Distances within a document do not change,
        and constant indices leave fewer operations for masks and biases.
        """
        if self.slots is not None:
            return self.queries, self.slots
        places_1T = np.arange(self.queries.positions_BT.shape[1], dtype=np.int32)[None]
        row = dataclasses.replace(self.queries, positions_BT=places_1T)
        return row, row

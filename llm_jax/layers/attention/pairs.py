"""The pairs of queries and keys of one call: which may see each other, and what is added to their scores.

Legend: B batch, T query length, S key length, N heads, R buckets of relative places.
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
"""Some of the T queries or S keys: a slice, or their numbers [n], int32, which the program may compute."""
WHOLE = slice(None)


@flax.struct.dataclass
class Drop:
    """Dropout of the weights of attention (Srivastava et al. 2014): each is zero with the probability `rate`, and all
    others are divided by 1 - rate."""

    key: jax.Array
    rate: float = flax.struct.field(pytree_node=False)

    def kept(self, shape: tuple[int, ...], first: int = 0) -> jax.Array:
        """Boolean, which weights of a block stay; `first` is the number of its first query, by which blocks differ."""
        return jax.random.bernoulli(jax.random.fold_in(self.key, first), 1 - self.rate, shape)


def drop_of(module: nn.Module, rate: float) -> Drop | None:
    """With a key of a module that is given one for dropout; None where it is not, or nothing is dropped."""
    return Drop(module.make_rng("dropout"), rate) if rate and module.has_rng("dropout") else None


@flax.struct.dataclass
class Pairs:
    """Mask, bias and sink inputs of an attention kernel for T queries and S keys.

    Attributes:
      queries: where the T tokens stand.
      slots: where the S keys stand; None: the keys are those of the same tokens.
      bias_RN: the table of learned biases, where `scores` has such.
      sink_N: float32, the scores of no token, where `scores` has such.
      heads: number of heads where the arrays, table and sinks hold but some of them; None: they hold all.
      first_head: int32 scalar, the first of those that they hold.
      drop: which weights of attention are dropped; None: none is.
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
        """Whether every row is one document without padding, against itself: the mask alone says who sees whom."""
        return self.slots is None and self.queries.segment_ids_BT is None

    def columns(self, rows: slice) -> slice:
        """The keys outside which the queries `rows` see nothing."""
        length, slots = self.shape
        return self.mask.columns(rows, length) if self.slots is None else slice(0, slots)

    def allowed(self, rows: Indices = WHOLE, columns: Indices = WHOLE) -> jax.Array:
        """Which of the keys `columns` the queries `rows` see: boolean [B or 1, rows or 1, columns or 1]."""
        queries, keys = self._numbered
        return self.mask.across(queries.part(rows), keys.part(columns))

    def bias(self, heads: int, rows: Indices = WHOLE, columns: Indices = WHOLE) -> jax.Array | None:
        """What is added to their scores: float32 [B or 1, N, rows, columns]; None for nothing."""
        queries, keys = self._numbered
        bias = self.scores.across(self.heads or heads, queries.part(rows), keys.part(columns), self.bias_RN)
        if bias is None or bias.shape[1] == heads:
            return bias
        return jax.lax.dynamic_slice_in_dim(
            bias, given(self.first_head, "pairs have `heads` and no `first_head`"), heads, axis=1
        )

    @property
    def _numbered(self) -> tuple[SequenceInfo, SequenceInfo]:
        """Where queries and keys stand.

        Tokens of one row are numbered by their places in it: within a document their distances are those of the
        positions, and being constants they leave masks and biases fewer operations.
        """
        if self.slots is not None:
            return self.queries, self.slots
        places_1T = np.arange(self.queries.positions_BT.shape[1], dtype=np.int32)[None]
        row = dataclasses.replace(self.queries, positions_BT=places_1T)
        return row, row

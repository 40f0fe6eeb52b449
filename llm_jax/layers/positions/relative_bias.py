"""Learned relative position biases (Raffel et al. 2020, arXiv:1910.10683, section 2.1).

Legend: B batch, T query length, S key length, N heads, R buckets of relative positions.
"""

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.checks import check, check_positive, given
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.initialisers import Init, Normal, annotated
from llm_jax.layers.positions.position import PositionBias
from llm_jax.layers.roles import Role
from llm_jax.sharding import axes


@configclass
class RelativeBiasConfig(PositionBias):
    """Bias of a score by the distance of query and key: one learned number per head and bucket of distances.

    The near half of the buckets hold one distance each. The far half are log-spaced up to `max_distance`; the last one
    holds all larger distances. All layers of a stack share one table.
    """

    buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = False
    """Whether half of the buckets are for keys after the query. Causal attention needs none for them."""
    init: Init = Normal(0.02)

    def __post_init__(self):
        check_positive(buckets=self.buckets, max_distance=self.max_distance)
        check(
            self.buckets % (4 if self.bidirectional else 2) == 0,
            f"bias.buckets is {self.buckets}: it must be even, and a multiple of 4 if `bidirectional`; use a multiple "
            "of 4",
        )
        check(
            self.max_distance > self._exact,
            f"bias.max_distance is {self.max_distance}: it must exceed the {self._exact} distances with buckets of "
            "their own; increase it or reduce bias.buckets",
        )

    def parameters(self, heads: int) -> int:
        """Number of parameters of the table."""
        return self.buckets * heads

    def across(
        self, heads: int, queries_BT: jax.Array, keys_BS: jax.Array, bias_RN: jax.Array | None = None
    ) -> jax.Array:
        """Bias between positions, [B, N, T, S] float32."""
        table_RN = given(bias_RN, "scores have a RelativeBiasConfig and the call has no table of biases: pass it")
        distance_BTS = keys_BS[:, None, :] - queries_BT[:, :, None]
        # [N, B, T, S] -> [B, N, T, S]
        return table_RN.T[:, self.bucket(distance_BTS)].swapaxes(0, 1)

    def bucket(self, distance: jax.Array | np.ndarray) -> jax.Array:
        """Bucket of a key `distance` positions after its query; int32, elementwise."""
        own = self.buckets // 2 if self.bidirectional else self.buckets
        first = jnp.where(distance > 0, own, 0) if self.bidirectional else 0
        distance = jnp.abs(distance) if self.bidirectional else jnp.maximum(-distance, 0)
        # The number of borders up to the distance; comparisons of integers, because logarithms round differently
        # (`_starts`).
        far = self._exact + sum((distance >= start).astype(jnp.int32) for start in self._starts)
        return first + jnp.where(distance < self._exact, distance, far)

    @property
    def _exact(self) -> int:
        """Number of distances with one bucket each."""
        return self.buckets // (4 if self.bidirectional else 2)

    @property
    def _starts(self) -> list[int]:
        """First distances of the far buckets except the first one: e (m / e)^(k / n) rounded up, k from 1 to n - 1.

        e buckets hold one distance each, n are far, m is `max_distance`. Computed in integers: with logarithms the
        borders would depend on compilation, and a full sequence and cached decoding could differ.
        """
        exact = far = self._exact

        def reaches(distance: int, k: int) -> bool:
            # distance >= e (m / e)^(k / n), with both sides raised to the power of n: integers, so nothing is rounded.
            return distance**far >= self.max_distance**k * exact ** (far - k)

        # Estimates in floating point; the exact comparison begins one below them.
        near = [math.floor(exact * (self.max_distance / exact) ** (k / far)) for k in range(1, far)]
        return [next(n for n in itertools.count(start - 1) if reaches(n, k)) for k, start in enumerate(near, start=1)]


@configclass
class LayerRelativeBiasConfig(RelativeBiasConfig):
    """The same with a table for each layer (UMT5; Chung et al. 2023, arXiv:2304.09151)."""


class RelativeBias(nn.Module):
    """The table float32 [R, N] of a layer, or of all layers of a stack."""

    config: RelativeBiasConfig
    heads: int
    precision: Precision

    @nn.compact
    def __call__(self) -> jax.Array:
        init = self.config.init.draw(self.heads, self.config.buckets)
        logical_axes, shape = (axes.POSITIONS, axes.HEADS), (self.config.buckets, self.heads)
        table_RN = self.param("table", annotated(init, logical_axes, Role.TABLE), shape, self.precision.param_dtype)
        return table_RN.astype(jnp.float32)

"""Learned absolute positions: a table added to the token embeddings (Gehring et al. 2017, arXiv:1705.03122, 3.1)."""

import dataclasses

import flax.linen as nn
import jax

from llm_jax.core.dtypes import Precision
from llm_jax.layers.linear import Init, Normal
from llm_jax.sharding import axes
from llm_jax.sharding.partition import constrain


@dataclasses.dataclass(frozen=True)
class LearnedPositionsConfig:
    """One trained vector per position, up to the model's `max_length`."""

    init: Init = Normal(0.02)

    def build(self, length: int, width: int, precision: Precision, name: str) -> "LearnedPositions":
        return LearnedPositions(self, length, width, precision, name=name)

    def parameters(self, length: int, width: int) -> int:
        return length * width


class LearnedPositions(nn.Module):
    """positions [B, T] int32 -> [B, T, D] in the compute type."""

    config: LearnedPositionsConfig
    length: int
    width: int
    precision: Precision

    @nn.compact
    def __call__(self, positions_BT: jax.Array) -> jax.Array:
        init = nn.initializers.normal(self.config.init.scale(self.width))
        table_TD = self.param(
            "table",
            nn.with_logical_partitioning(init, (axes.POSITIONS, axes.EMBED)),
            (self.length, self.width),
            self.precision.param_dtype,
        )
        # Gathered before the look-up, as in layers/embed.py.
        return constrain(table_TD.astype(self.precision.dtype), axes.POSITIONS, axes.WIDTH)[positions_BT]

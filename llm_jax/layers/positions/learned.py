"""Learned absolute positions: a table added to the token embeddings (Gehring et al. 2017, arXiv:1705.03122, 3.1)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.checks import check_not_negative
from llm_jax.core.dtypes import Precision
from llm_jax.layers.linear import Init, Normal
from llm_jax.sharding import axes
from llm_jax.sharding.partition import constrain


@dataclasses.dataclass(frozen=True)
class LearnedPositionsConfig:
    """One trained vector per position, up to the model's `max_length`."""

    init: Init = Normal(0.02)
    offset: int = 0
    """Row of position 0; OPT and RoBERTa keep rows before it that no token of a text uses."""

    def __post_init__(self):
        check_not_negative(offset=self.offset)

    def build(self, length: int, width: int, precision: Precision, name: str) -> "LearnedPositions":
        return LearnedPositions(self, length, width, precision, name=name)

    def parameters(self, length: int, width: int) -> int:
        return (self.offset + length) * width


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
            (self.config.offset + self.length, self.width),
            self.precision.param_dtype,
        )
        return look_up(table_TD, positions_BT + self.config.offset, axes.POSITIONS, self.precision.dtype)


def look_up(table_RD: jax.Array, rows_BT: jax.Array, word: str, dtype: jnp.dtype) -> jax.Array:
    """Rows of a table whose first axis has the logical word `word`, [B, T, D].

    The table is gathered before: left divided, the compiler would divide the activations' width instead, and replicate
    those of the whole batch on the way back.
    """
    return constrain(table_RD.astype(dtype), word, axes.WIDTH)[rows_BT]

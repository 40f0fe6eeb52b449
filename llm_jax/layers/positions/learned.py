"""Learned absolute positions: a table added to the token embeddings (Gehring et al. 2017, arXiv:1705.03122, 3.1)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.checks import check_not_negative
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.linear import Init, Normal
from llm_jax.sharding import axes
from llm_jax.sharding.partition import constrain, constrain_gradient


@configclass
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
    return _look_up(word, len(table_RD), table_RD.astype(dtype), rows_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _look_up(word: str, count: int, table_RD: jax.Array, rows_BT: jax.Array) -> jax.Array:
    return constrain(table_RD, word, axes.WIDTH)[rows_BT]


def _backward(word, count, rows_BT, dx_BTD):
    # Devices that divide the table's gradient exchange parts of the few rows that were read, and not the whole table.
    dx_BTD = constrain_gradient(dx_BTD, axes.BATCH, axes.LENGTH, axes.EMBED)
    table_RD = jnp.zeros((count, dx_BTD.shape[-1]), dx_BTD.dtype).at[rows_BT].add(dx_BTD)
    return constrain_gradient(table_RD, word, axes.EMBED), None


_look_up.defvjp(lambda word, count, table_RD, rows_BT: (_look_up(word, count, table_RD, rows_BT), rows_BT), _backward)

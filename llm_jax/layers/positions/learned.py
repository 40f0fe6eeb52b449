"""Learned absolute positions: a table added to the token embeddings (Gehring et al. 2017, arXiv:1705.03122, 3.1)."""

import flax.linen as nn
import jax

from llm_jax.core.checks import check_not_negative
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.broadcast import look_up
from llm_jax.layers.initialisers import Init, Normal, annotated
from llm_jax.layers.positions.position import AddedPosition
from llm_jax.layers.roles import Role
from llm_jax.sharding import axes


@configclass
class LearnedPositionsConfig(AddedPosition):
    """One learned vector per position, up to the model's `max_length`."""

    init: Init = Normal(0.02)
    offset: int = 0
    """Table row of position 0; in OPT and RoBERTa the rows before it are not used by tokens of a text."""

    def __post_init__(self):
        check_not_negative(offset=self.offset)

    def build(self, length: int, width: int, precision: Precision, name: str) -> "LearnedPositions":
        return LearnedPositions(self, length, width, precision, name=name)

    def parameters(self, length: int, width: int) -> int:
        return (self.offset + length) * width


class LearnedPositions(nn.Module):
    """positions [B, T] int32 -> [B, T, D] in the compute dtype."""

    config: LearnedPositionsConfig
    length: int
    width: int
    precision: Precision

    @nn.compact
    def __call__(self, positions_BT: jax.Array) -> jax.Array:
        init = self.config.init.draw(self.width, self.config.offset + self.length)
        table_TD = self.param(
            "table",
            annotated(init, (axes.POSITIONS, axes.EMBED), Role.TABLE),
            (self.config.offset + self.length, self.width),
            self.precision.param_dtype,
        )
        return look_up(table_TD, positions_BT + self.config.offset, self.precision.dtype, axes.POSITIONS)

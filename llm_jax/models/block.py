"""A block: token mixer and feed-forward layer on a residual stream.

Legend: B batch, T length, D model width.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from llm_jax.core.checks import check_fraction
from llm_jax.core.dtypes import Precision
from llm_jax.layers.ffn.mlp import FFNConfig
from llm_jax.layers.mixers.attention import AttentionConfig
from llm_jax.layers.mixers.masks import Placement
from llm_jax.layers.norms import NormConfig
from llm_jax.sharding import axes
from llm_jax.sharding.partition import constrain


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """x + mixer(norm(x)), then x + ffn(norm(x)): the pre-norm block (Xiong et al. 2020, arXiv:2002.04745)."""

    mixer: AttentionConfig
    ffn: FFNConfig
    norm: NormConfig
    dropout: float = 0.0
    """Share of features dropped, in training, from what each half adds to the stream."""

    def __post_init__(self):
        check_fraction(dropout=self.dropout)

    def parameters(self, width: int) -> int:
        return self.mixer.parameters(width) + self.ffn.parameters(width) + 2 * self.norm.parameters(width)


class Block(nn.Module):
    """x [B, T, D] -> [B, T, D]; the arguments are those of the mixer."""

    config: BlockConfig
    width: int
    precision: Precision

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, queries: Placement, slots: Placement | None, slot: jax.Array | None, state: Any
    ) -> tuple[jax.Array, Any]:
        config = self.config
        drop = nn.Dropout(config.dropout, deterministic=not self.has_rng("dropout"))
        mixer = config.mixer.build(self.width, self.precision, "mixer")
        ffn = config.ffn.build(self.width, self.precision, "ffn")
        mixed, state = mixer(config.norm.build(self.precision, "mixer_norm")(x_BTD), queries, slots, state, slot)
        x_BTD = constrain(x_BTD + drop(mixed), axes.BATCH, axes.LENGTH, axes.WIDTH)
        x_BTD += drop(ffn(config.norm.build(self.precision, "ffn_norm")(x_BTD)))
        return constrain(x_BTD, axes.BATCH, axes.LENGTH, axes.WIDTH), state

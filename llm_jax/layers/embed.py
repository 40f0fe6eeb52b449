"""Token embedding and its transpose.

Legend: B batch, T length, D model width, V vocabulary.
"""

import dataclasses

import flax.linen as nn
import jax

from llm_jax.core.checks import check_fraction, check_positive
from llm_jax.core.dtypes import Precision
from llm_jax.layers.linear import Init, Normal, contract
from llm_jax.layers.norms import NormConfig
from llm_jax.layers.positions.learned import LearnedPositionsConfig
from llm_jax.sharding import axes
from llm_jax.sharding.partition import constrain


@dataclasses.dataclass(frozen=True)
class EmbedConfig:
    """From token ids to vectors."""

    init: Init = Normal(0.02)
    position: LearnedPositionsConfig | None = None
    """Positions added to the embedding; None where the mixers carry them."""
    scale: float = 1.0
    """Factor of the token vectors; the 2017 Transformer and Gemma take the square root of the width."""
    norm: NormConfig | None = None
    """A norm of the sum, before dropout (BERT, BLOOM)."""
    dropout: float = 0.0
    """Share of embedded features dropped in training."""

    def __post_init__(self):
        check_positive(scale=self.scale)
        check_fraction(dropout=self.dropout)

    def parameters(self, vocab_size: int, max_length: int, width: int) -> int:
        positions = self.position.parameters(max_length, width) if self.position else 0
        return vocab_size * width + positions + (self.norm.parameters(width) if self.norm else 0)


class Embed(nn.Module):
    """Token ids [B, T] int32 -> [B, T, D] in the compute type."""

    config: EmbedConfig
    vocab_size: int
    max_length: int
    width: int
    precision: Precision

    def setup(self):
        init = nn.initializers.normal(self.config.init.scale(self.width))
        self.table_VD = self.param(
            "table",
            nn.with_logical_partitioning(init, (axes.VOCAB, axes.EMBED)),
            (self.vocab_size, self.width),
            self.precision.param_dtype,
        )
        if self.config.position:
            self.positions = self.config.position.build(self.max_length, self.width, self.precision, "positions")
        if self.config.norm:
            self.norm = self.config.norm.build(self.precision, "norm")
        self.drop = nn.Dropout(self.config.dropout)

    def __call__(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        # Gathered before the look-up: left divided, the compiler would divide the activations' width instead, and
        # replicate those of the whole batch on the way back.
        table_VD = constrain(self.table_VD.astype(self.precision.dtype), axes.VOCAB, axes.WIDTH)
        x_BTD = table_VD[tokens_BT]
        if self.config.scale != 1:
            x_BTD *= self.config.scale
        if self.config.position:
            x_BTD += self.positions(positions_BT)
        if self.config.norm:
            x_BTD = self.norm(x_BTD)
        return self.drop(x_BTD, deterministic=not self.has_rng("dropout"))

    def attend(self, x_BTD: jax.Array) -> jax.Array:
        """Scores of all tokens against the table, [B, T, V] (Press and Wolf 2017, arXiv:1608.05859)."""
        return contract("BTD,DV->BTV", x_BTD, self.table_VD.T.astype(self.precision.dtype))

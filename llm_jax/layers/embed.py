"""Token embedding and the tied output projection.

Legend: B batch, T length, D model width, E width of the table, V vocabulary.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.checks import check, check_fraction, check_not_negative, check_one_of, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.broadcast import broadcast, look_up
from llm_jax.layers.initialisers import Init, Normal, annotated
from llm_jax.layers.linear import LinearLayer, contract
from llm_jax.layers.norms import Norm
from llm_jax.layers.positions.position import AddedPosition
from llm_jax.layers.roles import Role
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.sharding import axes


@configclass
class FactorizedConfig:
    """Factorized embedding: a table narrower than the model, and a projection to the model width (Lan et al. 2020,
    arXiv:1909.11942, 3.1)."""

    width: int
    of: Literal["tokens", "sum"] = "sum"
    """What is projected: the token embeddings only (OPT 350M), or the sum with positions, types and norm (ALBERT,
    ELECTRA)."""
    bias: bool = True
    init: Init = Normal(0.02)

    def __post_init__(self):
        check_positive(width=self.width)
        check_one_of("of", self.of, ("tokens", "sum"))


@configclass
class EmbedConfig:
    """The embedding layer."""

    init: Init = Normal(0.02)
    position: AddedPosition | None = None
    """Positional embedding added to the token embeddings; None: the mixers may encode positions."""
    types: int = 0
    """Number of token types, each with a learned vector that is added (BERT's two sentences); 0: none."""
    scale: float = 1.0
    """Factor of the token embeddings; the square root of the width in the 2017 Transformer and Gemma."""
    norm: Norm | None = None
    """A norm of the sum, before dropout (BERT, BLOOM)."""
    dropout: float = 0.0
    """Dropout rate of the embedding in training."""
    factorized: FactorizedConfig | None = None
    """None: the table is as wide as the model."""
    target: bool = False
    """Whether there is a learned vector for query-stream tokens (Yang et al. 2019, arXiv:1906.08237, 2.3: the initial
    state of the query stream)."""

    def __post_init__(self):
        check_positive(scale=self.scale)
        check_not_negative(types=self.types)
        check_fraction(dropout=self.dropout)

    def table_width(self, width: int) -> int:
        """Width of the token embeddings in a model of this width."""
        return self.factorized.width if self.factorized else width

    def sum_width(self, width: int) -> int:
        """Width of positions, types and norm."""
        return self.table_width(width) if self.factorized and self.factorized.of == "sum" else width

    def parameters(self, vocab_size: int | None, max_length: int, width: int) -> int:
        table, inner = self.table_width(width), self.sum_width(width)
        total = ((vocab_size or 0) + self.target) * table + self.types * inner
        total += self.position.parameters(max_length, inner) if self.position else 0
        total += self.norm.parameters(inner) if self.norm else 0
        return total + ((table + self.factorized.bias) * width if self.factorized else 0)


class Embed(nn.Module):
    """Token ids [B, T] int32 -> [B, T, D] in the compute dtype."""

    config: EmbedConfig
    vocab_size: int | None
    """None: there is no table; the caller passes embeddings."""
    max_length: int
    width: int
    precision: Precision

    def setup(self):
        config, inner = self.config, self.config.sum_width(self.width)
        if self.vocab_size is not None:
            shape, logical_axes = (self.vocab_size, config.table_width(self.width)), (axes.VOCAB, axes.EMBED)
            self.table_VE = self._table("table", shape, logical_axes, Role.EMBEDDING)
        if config.target:
            size = config.table_width(self.width)
            init = annotated(config.init.draw(size, 1), (axes.EMBED,), Role.VECTOR)
            self.target_E = self.param("target", init, (size,), self.precision.param_dtype)
        if config.types:
            self.types_RE = self._table("types", (config.types, inner), (axes.TYPES, axes.EMBED), Role.TABLE)
        if config.position:
            self.positions = config.position.build(self.max_length, inner, self.precision, "positions")
        if config.norm:
            self.norm = config.norm.build(self.precision, "norm")
        if config.factorized:
            shape, logical_axes = (config.factorized.width, self.width), (axes.MLP, axes.EMBED)
            init, bias = config.factorized.init, config.factorized.bias
            self.widen = LinearLayer("BTE,ED->BTD", shape, logical_axes, init, self.precision, bias)
        self.drop = nn.Dropout(config.dropout)

    def __call__(self, x_BTE: jax.Array, placement: SequenceInfo) -> jax.Array:
        """The input of the first block [B, T, D] from the embeddings of `tokens`.

        Raises:
          ValueError: for query-stream tokens (`targets_BT`) if the model has no vector for them.
        """
        x_BTD, factorized = self.summed(x_BTE, placement), self.config.factorized
        # ALBERT and ELECTRA project last, after norm and dropout.
        return self.widen(x_BTD) if factorized and factorized.of == "sum" else x_BTD

    def summed(self, x_BTE: jax.Array, placement: SequenceInfo) -> jax.Array:
        """Sum of the embeddings of `tokens`, positions and types, after norm and dropout, [B, T, `sum_width`].

        Raises:
          ValueError: as `__call__`.
        """
        config = self.config
        # The query stream must not contain the embedding of the token that it predicts: it starts from a learned
        # vector.
        if placement.targets_BT is not None:
            check(config.target, "sequence has targets_BT and embed.target is False: set embed.target to True")
            target_BTE = broadcast(self.target_E, x_BTE.shape, x_BTE.dtype)
            x_BTE = jnp.where(placement.targets_BT[..., None], target_BTE, x_BTE)
        # Only token embeddings are scaled, before positions are added (Vaswani et al. 2017, arXiv:1706.03762, 3.4).
        x_BTD = x_BTE if config.scale == 1 else x_BTE * config.scale
        if config.factorized and config.factorized.of == "tokens":
            x_BTD = self.widen(x_BTD)
        if config.types:
            x_BTD += self._types(placement.types_BT, x_BTD)
        if config.position:
            x_BTD += self.positions(placement.positions_BT)
        if config.norm:
            x_BTD = self.norm(x_BTD)
        return self.drop(x_BTD, deterministic=not self.has_rng("dropout"))

    def tokens(self, tokens_BT: jax.Array) -> jax.Array:
        """Embeddings of the tokens, [B, T, E]."""
        return look_up(self.table_VE, tokens_BT, self.precision.dtype, axes.VOCAB)

    def attend(self, x_BTE: jax.Array) -> jax.Array:
        """Logits with the tied embedding table, [B, T, V] (Press and Wolf 2017, arXiv:1608.05859)."""
        return contract("BTE,EV->BTV", x_BTE, self.table_VE.T.astype(self.precision.dtype))

    def _types(self, types_BT: jax.Array | None, x_BTD: jax.Array) -> jax.Array:
        """Type embeddings of the tokens; all tokens have the first type if `types_BT` is None."""
        if types_BT is None:
            return broadcast(self.types_RE[0], x_BTD.shape, x_BTD.dtype)
        return look_up(self.types_RE, types_BT, x_BTD.dtype, axes.TYPES)

    def _table(self, name: str, shape: tuple[int, int], logical_axes: tuple[str, str], role: Role) -> jax.Array:
        init = annotated(self.config.init.draw(shape[1], shape[0]), logical_axes, role)
        return self.param(name, init, shape, self.precision.param_dtype)

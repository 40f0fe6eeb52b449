"""Multi-head latent attention: keys and values of all heads are projections of one latent vector per token, and only
that vector is cached (DeepSeek-AI 2024, arXiv:2405.04434, section 2.1; DeepSeek-V3, arXiv:2412.19437, 2.1.1).

Legend: B batch, T query length, S key length, D model width, N heads, H features of a head without position, P rotated
features, V features of a value, Q rank of queries, R rank of keys and values, L = R + P.
"""

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm_jax.core.checks import check, check_not_negative, check_positive, check_positive_if_given
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.attention import context_parallel
from llm_jax.layers.attention.kernels import BlockedKernel, Kernel, check_dropout, weights
from llm_jax.layers.attention.masks import Causal, Mask
from llm_jax.layers.attention.pairs import Pairs, drop_of
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.broadcast import broadcast
from llm_jax.layers.context import Context
from llm_jax.layers.initialisers import Init, Normal
from llm_jax.layers.linear import LinearLayer
from llm_jax.layers.mixer import Mixer
from llm_jax.layers.norms import Norm, RMSNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.layers.positions.rope_scaling import YaRNScaling
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.layers.tap import tap
from llm_jax.sharding import axes


@configclass
class LatentAttentionConfig(Mixer):
    """Low-rank queries, keys and values, with separate rotary features (equations 9 to 19).

    The query and key of a head have `head_dim` features projected from the latent vectors and `rotary_dim` rotated
    features. The rotated features of keys are projected from the input of the layer and shared by all heads.
    """

    heads: int
    query_rank: int | None = None
    """Size of the latent vector of queries; None: queries are projected from the input itself (DeepSeek-V2-Lite)."""
    rank: int = 512
    """Size of the latent vector of keys and values."""
    head_dim: int = 128
    rotary_dim: int = 64
    value_dim: int = 128
    norm: Norm = RMSNormConfig()
    """Norm of the latent vectors."""
    mask: Mask = Causal()
    position: RoPEConfig = RoPEConfig()
    """Rotation of the `rotary_dim` features."""
    sharpening: float = 0.0
    """m in the factor (0.1 m ln(factor) + 1)^2 of all scores, where `factor` is YaRN's (Peng et al. 2023,
    arXiv:2309.00071, 3.4). Scaling cosine and sine instead would affect the rotated part of the scores only."""
    init: Init = Normal(0.02)
    out_init: Init = Normal(0.02)
    """Initialiser of the output projection, which writes to the residual stream."""
    kernel: Kernel = BlockedKernel()
    dropout: float = 0.0
    """Dropout rate of the attention weights in training."""

    def __post_init__(self):
        check_dropout(self.kernel, self.dropout)
        check_positive(heads=self.heads, rank=self.rank, head_dim=self.head_dim, value_dim=self.value_dim)
        check_positive(rotary_dim=self.rotary_dim)
        check_positive_if_given(query_rank=self.query_rank)
        check_not_negative(sharpening=self.sharpening)
        check(
            self.rotary_dim % 2 == 0,
            f"rotary_dim is {self.rotary_dim}: it must be even, since RoPE rotates pairs",
        )
        check(
            self.position.features is None,
            f"position.features is {self.position.features}: `rotary_dim` sets the number of rotated features; set "
            "position.features to None",
        )
        check(
            not self.sharpening or isinstance(self.position.scaling, YaRNScaling),
            f"sharpening is {self.sharpening} and position.scaling is {self.position.scaling}: sharpening requires "
            "YaRNScaling; set it to 0",
        )
        check(
            self.kernel.mixed_sizes,
            f"kernel is {type(self.kernel).__name__}, which requires values of the size of keys, and here the sizes "
            "differ: set kernel to BlockedKernel, ChunkedKernel or PlainKernel",
        )

    def build(self, width: int, precision: Precision, name: str) -> "LatentAttention":
        return LatentAttention(self, width, precision, name=name)

    @property
    def query_dim(self) -> int:
        """Features of a query or key of one head."""
        return self.head_dim + self.rotary_dim

    @property
    def scores(self) -> ScoresConfig:
        """Scale of the scores, which follows from `query_dim` in the expanded and in the absorbed form."""
        scaling = self.position.scaling
        factor = scaling.factor if isinstance(scaling, YaRNScaling) else 1.0
        # The square, because in YaRN both the query and the key have the factor.
        sharper = 0.1 * self.sharpening * math.log(max(factor, 1.0)) + 1
        return ScoresConfig(scale=sharper**2 / math.sqrt(self.query_dim))

    def parameters(self, width: int) -> int:
        """Number of parameters at model width `width`."""
        norms = self.norm.parameters(self.rank) + (self.norm.parameters(self.query_rank) if self.query_rank else 0)
        # The projections have no biases, so each weight costs 2 FLOPs a token.
        return self.matrix_flops(width) // 2 + norms

    def matrix_flops(self, width: int) -> int:
        """Forward FLOPs per token of the projections."""
        down = width * ((self.query_rank or 0) + self.rank + self.rotary_dim)
        queries = (self.query_rank or width) * self.query_dim
        keys_values = self.rank * (self.head_dim + self.value_dim)
        return 2 * (down + self.heads * (queries + keys_values + self.value_dim * width))

    def mixing_flops(self, length: int) -> float:
        """Forward FLOPs per token of scores and weighted sum, over the pairs that the mask allows."""
        return 2 * self.heads * (self.query_dim + self.value_dim) * self.mask.pairs(length)

    def absorbs(self, length: int, slots: int) -> bool:
        """Whether attention of `length` queries over `slots` cached tokens needs fewer FLOPs in the latent space than
        after expansion to keys and values: true for few queries."""
        # Multiply-adds per head. Absorbed: T queries and outputs are projected, and scores and sums are over R
        # features. Expanded: S latent vectors are projected, and scores are over H and sums over V features. The P
        # rotated features cost the same in both.
        expand = self.rank * (self.head_dim + self.value_dim)
        absorbed = length * expand + length * slots * 2 * self.rank
        return absorbed < slots * expand + length * slots * (self.head_dim + self.value_dim)

    @property
    def causal(self) -> bool:
        """Whether the mask is causal."""
        return self.mask.causal

    @property
    def shape(self) -> str:
        """Heads, as text."""
        return f"{self.heads} of {self.head_dim} + {self.rotary_dim} rotated, keys and values of {self.rank}"

    def allocate(self, batch: int, slots: int, dtype: jnp.dtype) -> "Latents":
        """An empty cache of `slots` positions."""
        return Latents(jnp.zeros((batch, slots, self.rank + self.rotary_dim), dtype))


@flax.struct.dataclass
class Latents:
    """Cached latent vectors, [B, S, L]: R features of the normalised latent vector, then the rotated key.

    They are one array because the absorbed form reads both together as keys.
    """

    c_BSL: jax.Array

    def write(self, c_BTL: jax.Array, slot: jax.Array) -> "Latents":
        """Writes T new entries at cache positions `slot`, `slot` + 1, ... of every sequence."""
        return Latents(jax.lax.dynamic_update_slice(self.c_BSL, c_BTL.astype(self.c_BSL.dtype), (0, slot, 0)))


class LatentAttention(nn.Module):
    """x [B, T, D] -> [B, T, D].

    With the remat policy `projections` the latent vectors are saved and the backward pass recomputes queries, keys and
    values from them, as in the training of DeepSeek-V3 (3.2.3).
    """

    config: LatentAttentionConfig
    width: int
    precision: Precision

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: Context, state: Latents | None = None
    ) -> tuple[jax.Array, Latents | None]:
        """Attends over the sequence. `state` caches the latent vectors; those of this call are written to it."""
        config = self.config
        query = self._queries(x_BTD, context.queries)
        c_BSL = self._latents(x_BTD, context.queries)
        # Without a cache every token is a query, and for many queries the expanded form needs fewer FLOPs
        # (experiments/LOG.md).
        mix = self._expanded
        if state is not None:
            state = state.write(c_BSL, context.first_slot)
            c_BSL = state.c_BSL
            mix = self._absorbed if config.absorbs(x_BTD.shape[1], c_BSL.shape[1]) else self._expanded
        y_BNTV = mix(*query, c_BSL, context)
        shape, logical_axes = (config.heads, config.value_dim, self.width), (axes.HEADS, axes.HEAD_DIM, axes.EMBED)
        out = LinearLayer("BNTV,NVD->BTD", shape, logical_axes, config.out_init, self.precision, name="out")
        return out(y_BNTV), state

    def _queries(self, x_BTD: jax.Array, sequence: SequenceInfo) -> tuple[jax.Array, jax.Array]:
        """Queries [B, N, T, H] and their rotated features [B, N, T, P]."""
        config = self.config
        # Equations 12 to 14 of DeepSeek-V2.
        if config.query_rank is not None:
            x_BTD = checkpoint_name(self._down("query_down", config.query_rank)(x_BTD), "qkv")
            x_BTD = config.norm.build(self.precision, "query_norm")(x_BTD)
        rank = x_BTD.shape[-1]
        q_BNTH = self._up("query", rank, config.head_dim)(x_BTD)
        q_BNTP = config.position.rotate(
            self._up("query_rotary", rank, config.rotary_dim)(x_BTD), sequence.positions_BT, sequence.lengths_BT
        )
        if config.query_rank is None:
            q_BNTH, q_BNTP = checkpoint_name(q_BNTH, "qkv"), checkpoint_name(q_BNTP, "qkv")
        return q_BNTH, q_BNTP

    def _latents(self, x_BTD: jax.Array, sequence: SequenceInfo) -> jax.Array:
        """The latent vectors and rotated keys, [B, T, L]."""
        config = self.config
        # Equation 9, and equation 15 for the rotated key, which does not pass through the latent vector: a rotation
        # between the two projections could not be absorbed (section 2.1.3).
        c_BTR = checkpoint_name(self._down("latent", config.rank)(x_BTD), "qkv")
        c_BTR = config.norm.build(self.precision, "latent_norm")(c_BTR)
        k_BTP = self._down("key_rotary", config.rotary_dim)(x_BTD)
        k_BTP = checkpoint_name(
            config.position.rotate(k_BTP[:, None], sequence.positions_BT, sequence.lengths_BT)[:, 0], "qkv"
        )
        return jnp.concatenate([c_BTR, k_BTP], axis=-1)

    def _expanded(self, q_BNTH: jax.Array, q_BNTP: jax.Array, c_BSL: jax.Array, context: Context) -> jax.Array:
        """Attention with expanded keys and values of every head, [B, N, T, V]."""
        config = self.config
        c_BSR, k_BSP = jnp.split(c_BSL, [config.rank], axis=-1)
        # Equations 10 and 11; the rotated key is the same for all heads (equation 17).
        k_BNSH = self._up("key", config.rank, config.head_dim)(c_BSR)
        v_BNSV = self._up("value", config.rank, config.value_dim)(c_BSR)
        k_BNSP = broadcast(k_BSP[:, None], (*k_BNSH.shape[:3], config.rotary_dim), k_BSP.dtype)
        q, k = jnp.concatenate([q_BNTH, q_BNTP], axis=-1), jnp.concatenate([k_BNSH, k_BNSP], axis=-1)
        return self._attend(q, k, v_BNSV, context)

    def _absorbed(self, q_BNTH: jax.Array, q_BNTP: jax.Array, c_BSL: jax.Array, context: Context) -> jax.Array:
        """`_expanded` in the absorbed form: q (W c) = (q W) c, so all heads share the latent vectors as keys of L
        features and values of R features (section 2.1.2)."""
        config = self.config
        q_BNTR = self._up("key", config.rank, config.head_dim).product("BNTH,RNH->BNTR", q_BNTH)
        q, k = jnp.concatenate([q_BNTR, q_BNTP], axis=-1), c_BSL[:, None]
        y_BNTR = self._attend(q, k, k[..., : config.rank], context)
        return self._up("value", config.rank, config.value_dim).product("BNTR,RNV->BNTV", y_BNTR)

    def _attend(self, q: jax.Array, k: jax.Array, v: jax.Array, context: Context) -> jax.Array:
        config = self.config
        drop = drop_of(self, config.dropout)
        pairs = Pairs(config.mask, context.queries, context.slots, config.scores, drop=drop)
        tap(self, "weights", lambda: weights(q, k, pairs))
        return context_parallel.attend(config.kernel, q, k, v, pairs, cached=context.slots is not None)

    def _down(self, name: str, size: int) -> LinearLayer:
        """Projection from the input to a vector shared by all heads."""
        shape, logical_axes = (self.width, size), (axes.EMBED, axes.HEAD_DIM)
        return LinearLayer("BTD,DR->BTR", shape, logical_axes, self.config.init, self.precision, name=name)

    def _up(self, name: str, size: int, head_dim: int) -> LinearLayer:
        """Projection from a vector of `size` features to all heads."""
        shape, logical_axes = (size, self.config.heads, head_dim), (axes.EMBED, axes.HEADS, axes.HEAD_DIM)
        return LinearLayer("BTR,RNH->BNTH", shape, logical_axes, self.config.init, self.precision, name=name)

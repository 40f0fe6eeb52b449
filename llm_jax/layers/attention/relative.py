"""Attention with relative positions (Dai et al. 2019, arXiv:1901.02860, 3.3) and relative segment encodings (Yang et
al. 2019, arXiv:1906.08237, 2.5).

With the mask `Permuted` it is XLNet's two-stream attention (2.3 and A.2). The two streams are concatenated along the
sequence: first the content stream, then the query stream. Both have the same weights. Keys and values come from the
content stream only, because the mask hides query-stream tokens from all queries.

Legend: B batch, T query length, S key length, D model width, N heads, H head size, R distances.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm_jax.core.checks import check, check_positive, check_positive_if_given
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.attention.kernels import PlainKernel, check_dropout, softmax_weights
from llm_jax.layers.attention.kv_cache import KeyValues
from llm_jax.layers.attention.masks import Mask, Permuted
from llm_jax.layers.attention.pairs import drop_of
from llm_jax.layers.attention.softmax import attend, zero_fully_masked
from llm_jax.layers.broadcast import broadcast
from llm_jax.layers.context import Context
from llm_jax.layers.initialisers import Init, Normal, annotated
from llm_jax.layers.linear import LinearLayer
from llm_jax.layers.mixer import Mixer
from llm_jax.layers.positions.sinusoidal import SinusoidalConfig
from llm_jax.layers.roles import Role
from llm_jax.layers.tap import tap
from llm_jax.sharding import axes


@configclass
class RelativeAttentionConfig(Mixer):
    """The score of a query q for a key k at distance d is ((q + u) k + (q + v) W sinusoid(d) + (q + w) s) / sqrt(H).
    u, v and w are learned. s is one learned vector for keys with the query's token type and another for all others; it
    has no effect where all tokens have one type.

    It has no KV cache, and so no memory of earlier segments.
    """

    heads: int
    head_dim: int
    mask: Mask = Permuted()
    farthest: int | None = None
    """Distances are clipped to this maximum; None: no limit."""
    init: Init = Normal(0.02)
    out_init: Init = Normal(0.02)
    """Initialiser of the output projection, which writes to the residual stream."""
    dropout: float = 0.0
    """Dropout rate of the attention weights in training."""

    def __post_init__(self):
        check_dropout(PlainKernel(), self.dropout)
        check_positive(heads=self.heads, head_dim=self.head_dim)
        check_positive_if_given(farthest=self.farthest)

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads: one for each head."""
        return self.heads

    def build(self, width: int, precision: Precision, name: str) -> "RelativeAttention":
        return RelativeAttention(self, width, precision, name=name)

    def parameters(self, width: int) -> int:
        """Number of parameters at model width `width`: five matrices, three biases, two segment encodings."""
        return (5 * width + 3 + 2) * self.heads * self.head_dim

    def matrix_flops(self, width: int) -> int:
        """Forward FLOPs per token of the projections, except that of the distances, which is shared by the batch."""
        return 8 * width * self.heads * self.head_dim

    def mixing_flops(self, length: int) -> float:
        """Forward FLOPs per token of scores and weighted sum over the pairs that the mask allows, and of the scores of
        all distances, of which there are twice as many as tokens."""
        return 4 * self.heads * self.head_dim * (self.mask.pairs(length) + min(length, self.farthest or length))

    @property
    def causal(self) -> bool:
        """Whether the mask is causal."""
        return self.mask.causal

    @property
    def shape(self) -> str:
        """Heads, as text."""
        return f"{self.heads} of {self.head_dim}, by distance"

    def allocate(self, batch: int, slots: int, dtype: jnp.dtype) -> KeyValues:
        """An empty cache with no positions; nothing is written to it."""
        shape = (batch, self.heads, 0, self.head_dim)
        return KeyValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


class RelativeAttention(nn.Module):
    """x [B, T, D] -> [B, T, D]."""

    config: RelativeAttentionConfig
    width: int
    precision: Precision

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context, state: KeyValues | None = None) -> tuple[jax.Array, None]:
        """Attends over the sequence.

        Raises:
          ValueError: with a KV cache.
        """
        check(state is None, "attention with relative distances has no KV cache: pass whole sequences without a cache")
        config, sequence = self.config, context.queries
        q_BNTH, k_BNSH, v_BNSH = (self._project(name, x_BTD) for name in ("query", "key", "value"))
        # Of the four terms of Dai et al. 3.3, (b) and (d) are a bias by distance, (a) and (c) the product of keys and
        # biased queries.
        allowed = config.mask.across(sequence, sequence)
        bias_BNTS = self._of_distances(q_BNTH, sequence.positions_BT) + self._of_parts(q_BNTH, sequence.types_BT)
        drop = drop_of(self, config.dropout)
        kept = None if drop is None else drop.kept(bias_BNTS.shape)
        content_BNTH = self._biased("by_content", q_BNTH)
        tap(self, "weights", lambda: softmax_weights(content_BNTH, k_BNSH, allowed, bias_BNTS))
        y_BNTH = attend(content_BNTH, k_BNSH, v_BNSH, allowed, bias_BNTS, kept=kept, rate=config.dropout)
        # The first token of the factorisation order is fully masked in the query stream if no token is given.
        y_BNTH = zero_fully_masked(y_BNTH, allowed)
        shape, logical_axes = (config.heads, config.head_dim, self.width), (axes.HEADS, axes.HEAD_DIM, axes.EMBED)
        return LinearLayer("BNTH,NHD->BTD", shape, logical_axes, config.out_init, self.precision, name="out")(
            y_BNTH
        ), None

    def _of_distances(self, q_BNTH: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """(q + v) W sinusoid(d) / sqrt(H), [B, N, T, S] float32.

        It is computed once for every distance possible at this length, then looked up. Positions count the tokens of a
        document, so no distance exceeds the sequence length.
        """
        # Not the shift of rows of the paper's appendix B, which needs positions that count through the sequence: here
        # they restart with each document, and the query stream repeats those of the content stream.
        reach = q_BNTH.shape[2] - 1
        reach = reach if self.config.farthest is None else min(reach, self.config.farthest)
        sinusoid_1RD = SinusoidalConfig().build(0, self.width, self.precision, "")(jnp.arange(-reach, reach + 1)[None])
        r_NRH = self._project("distance", sinusoid_1RD)[0]
        scores_BNTR = self._scores("BNTH,NRH->BNTR", self._biased("by_distance", q_BNTH), r_NRH)
        distance_BTS = positions_BT[:, :, None] - positions_BT[:, None, :]
        found_B1TS = (jnp.clip(distance_BTS, -reach, reach) + reach)[:, None]
        return jnp.take_along_axis(scores_BNTR, found_B1TS, axis=-1)

    def _of_parts(self, q_BNTH: jax.Array, types_BT: jax.Array | None) -> jax.Array | float:
        """(q + w) s / sqrt(H), [B, N, T, S] float32; 0 where all tokens have one type."""
        config, logical_axes = self.config, (axes.TYPES, axes.HEADS, axes.HEAD_DIM)
        init = annotated(config.init.draw(config.head_dim, config.heads), logical_axes, Role.TABLE)
        shape = (2, config.heads, config.head_dim)
        parts_RNH = self.param("parts", init, shape, self.precision.param_dtype)
        q_BNTH = self._biased("by_part", q_BNTH)
        # After all parameters are created: these must not depend on the inputs that happen to initialise the model.
        if types_BT is None:
            return 0.0
        scores_BNT2 = self._scores("BNTH,RNH->BNTR", q_BNTH, parts_RNH.astype(q_BNTH.dtype))
        same_B1TS = (types_BT[:, :, None] == types_BT[:, None, :])[:, None]
        return jnp.where(same_B1TS, scores_BNT2[..., :1], scores_BNT2[..., 1:])

    def _project(self, name: str, x_BTD: jax.Array) -> jax.Array:
        """[B, N, T, H]."""
        config, logical_axes = self.config, (axes.EMBED, axes.HEADS, axes.HEAD_DIM)
        shape = (self.width, config.heads, config.head_dim)
        linear = LinearLayer("BTD,DNH->BNTH", shape, logical_axes, config.init, self.precision, name=name)
        return checkpoint_name(linear(x_BTD), "qkv")

    def _biased(self, name: str, q_BNTH: jax.Array) -> jax.Array:
        """The queries plus the learned bias `name`."""
        return HeadBias(self.config, self.precision, name=name)(q_BNTH)

    def _scores(self, einsum: str, q_BNTH: jax.Array, with_what: jax.Array) -> jax.Array:
        scores = jnp.einsum(einsum, q_BNTH, with_what, preferred_element_type=jnp.float32)
        return scores * self.config.head_dim**-0.5


class HeadBias(nn.Module):
    """x [B, N, T, H] plus a learned vector per head."""

    config: RelativeAttentionConfig
    precision: Precision

    @nn.compact
    def __call__(self, x_BNTH: jax.Array) -> jax.Array:
        config, logical_axes = self.config, (axes.HEADS, axes.HEAD_DIM)
        init = annotated(config.init.draw(config.head_dim, config.heads), logical_axes, Role.BIAS)
        bias_NH = self.param("bias", init, (config.heads, config.head_dim), self.precision.param_dtype)
        return x_BNTH + broadcast(bias_NH[:, None], x_BNTH.shape, x_BNTH.dtype)

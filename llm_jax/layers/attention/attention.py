"""Multi-head attention with grouped key/value heads.

Legend: B batch, T query length, S key length, D model width, N heads, K key/value heads, H head size.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm_jax.core.checks import check, check_divides, check_one_of, check_positive, check_positive_if_given
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.attention import context_parallel
from llm_jax.layers.attention.kernels import BlockedKernel, Kernel, check_dropout, weights
from llm_jax.layers.attention.kv_cache import KeyValues
from llm_jax.layers.attention.masks import Bidirectional, Causal, Mask
from llm_jax.layers.attention.pairs import Pairs, drop_of
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.attention.softmax import zero_fully_masked
from llm_jax.layers.context import Context
from llm_jax.layers.initialisers import Init, Normal, annotated
from llm_jax.layers.linear import LinearLayer
from llm_jax.layers.mixer import Mixer
from llm_jax.layers.norms import Norm
from llm_jax.layers.positions.position import RotaryPosition
from llm_jax.layers.positions.relative_bias import LayerRelativeBiasConfig, RelativeBias, RelativeBiasConfig
from llm_jax.layers.roles import Role
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.layers.tap import tap
from llm_jax.sharding import axes, partition


@configclass
class QKNormConfig:
    """Normalisation of queries and keys before the rotary embedding (Henry et al. 2020, arXiv:2010.04245; Dehghani et
    al. 2023, arXiv:2302.05442, 2)."""

    norm: Norm
    over: Literal["head", "heads", "each head"] = "head"
    """`head`: each head's features, one scale for all heads (Qwen 3, Gemma 3). `heads`: all heads' features together
    (OLMo 2). `each head`: each head's features, with a scale for each head (Command R+)."""

    def __post_init__(self):
        check_one_of("over", self.over, ("head", "heads", "each head"))

    def parameters(self, heads: int, kv_heads: int, head_dim: int) -> int:
        """Number of parameters."""
        if self.over == "each head":
            return (heads + kv_heads) * self.norm.parameters(head_dim)
        query, key = (head_dim, head_dim) if self.over == "head" else (heads * head_dim, kv_heads * head_dim)
        return self.norm.parameters(query) + self.norm.parameters(key)

    def apply(self, x_BNTH: jax.Array, precision: Precision, name: str, heads_axis: str) -> jax.Array:
        """Normalised queries or keys. The norm's parameters belong to the calling module; `heads_axis` is the logical
        axis of their heads."""
        norm = self.norm.build(precision, name)
        if self.over == "head":
            return norm(x_BNTH)
        if self.over == "each head":
            own: dict[str, Any] = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            own["metadata_params"] = {nn.PARTITION_NAME: heads_axis}
            return nn.vmap(lambda norm, x_BTH: norm(x_BTH), in_axes=1, out_axes=1, **own)(norm, x_BNTH)
        batch, heads, length, head_dim = x_BNTH.shape
        x_BTM = norm(x_BNTH.transpose(0, 2, 1, 3).reshape(batch, length, heads * head_dim))
        return x_BTM.reshape(batch, length, heads, head_dim).transpose(0, 2, 1, 3)


@configclass
class AttentionConfig(Mixer):
    """Attention as in Vaswani et al. 2017 (arXiv:1706.03762, 3.2); with `kv_heads` < `heads` grouped-query attention
    (Ainslie et al. 2023, arXiv:2305.13245), with `kv_heads` = 1 multi-query (Shazeer 2019, arXiv:1911.02150)."""

    heads: int
    head_dim: int
    kv_heads: int
    mask: Mask = Causal()
    position: RotaryPosition | None = None
    """Rotary embedding of queries and keys. None: attention adds no position; the embedding may."""
    scores: ScoresConfig = ScoresConfig()
    qk_norm: QKNormConfig | None = None
    clip: float | None = None
    """c: queries, keys and values are clipped to [-c, c], before the rotary embedding (DBRX)."""
    bias: bool = False
    """Biases on the projections of queries, keys and values."""
    out_bias: bool | None = None
    """Whether the output projection has a bias; None: as `bias`."""
    init: Init = Normal(0.02)
    out_init: Init = Normal(0.02)
    """Initialiser of the output projection, which writes to the residual stream."""
    query_init: Init | None = None
    """Initialiser of the projection of queries; None: `init`."""
    kernel: Kernel = BlockedKernel()
    dropout: float = 0.0
    """Dropout rate of the attention weights in training."""

    def __post_init__(self):
        check_dropout(self.kernel, self.dropout)
        check_positive(heads=self.heads, head_dim=self.head_dim, kv_heads=self.kv_heads)
        check_divides(self.kv_heads, self.heads, "kv_heads", "heads")
        check_positive_if_given(clip=self.clip)
        if self.position is not None:
            self.position.check_fits(self.head_dim)
        self.kernel.check(self.scores)

    def build(self, width: int, precision: Precision, name: str) -> "Attention":
        return Attention(self, width, precision, name=name)

    def parameters(self, width: int) -> int:
        """Number of parameters at model width `width`."""
        query, key_value = self.heads * self.head_dim, self.kv_heads * self.head_dim
        norms = self.qk_norm.parameters(self.heads, self.kv_heads, self.head_dim) if self.qk_norm else 0
        biases = self.bias * (query + 2 * key_value) + self.biased_output * width
        return 2 * width * (query + key_value) + biases + norms + self.scores.parameters(self.heads)

    @property
    def biased_output(self) -> bool:
        """Whether the output projection has a bias."""
        return self.bias if self.out_bias is None else self.out_bias

    def matrix_flops(self, width: int) -> float:
        """Forward FLOPs per token of the projections."""
        # Queries and output have the matrices of all heads, keys and values those of the key/value heads; 2 FLOPs a
        # weight.
        return 4 * width * (self.heads + self.kv_heads) * self.head_dim

    def mixing_flops(self, length: int) -> float:
        """Forward FLOPs per token of scores and weighted sum, over the pairs that the mask allows."""
        # For each pair and head, 2 FLOPs a feature for the score and 2 for the weighted sum.
        return 4 * self.heads * self.head_dim * self.mask.pairs(length)

    @property
    def causal(self) -> bool:
        """Whether the mask is causal."""
        return self.mask.causal

    @property
    def shape(self) -> str:
        """Heads, as text."""
        return f"{self.heads} of {self.head_dim}, {self.kv_heads} key/value"

    def allocate(self, batch: int, slots: int, dtype: jnp.dtype) -> KeyValues:
        """An empty KV cache of `slots` positions."""
        shape = (batch, self.kv_heads, slots, self.head_dim)
        return KeyValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


class Attention(nn.Module):
    """x [B, T, D] -> [B, T, D]."""

    config: AttentionConfig
    width: int
    precision: Precision

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: Context, state: KeyValues | None = None
    ) -> tuple[jax.Array, KeyValues | None]:
        """Attends over the sequence. `state` is the KV cache; the keys and values of this call are written to it."""
        config = self.config
        q_BNTH = self.queries(x_BTD, context.queries)
        k_BKSH, v_BKSH = self.keys_values(x_BTD, context.queries, cached=state is not None)
        # With a cache the queries attend to all cache positions. Empty ones have segment id 0, which the mask excludes.
        if state is not None:
            state = state.write(k_BKSH, v_BKSH, context.first_slot)
            k_BKSH, v_BKSH = state.k_BKSH, state.v_BKSH
        # What attention needs beside queries, keys and values: mask, bias, sinks and dropout.
        given = {"bias_RN": self.biases(context), "sink_N": self.sinks(), "drop": drop_of(self, config.dropout)}
        pairs = Pairs(config.mask, context.queries, context.slots, config.scores, **given)
        tap(self, "weights", lambda: weights(q_BNTH, k_BKSH, pairs))
        y_BNTH = context_parallel.attend(config.kernel, q_BNTH, k_BKSH, v_BKSH, pairs, cached=state is not None)
        return self.out(y_BNTH), state

    def queries(self, x_BTD: jax.Array, sequence: SequenceInfo) -> jax.Array:
        """[B, N, T, H], normalised and rotated."""
        # Heads come before the sequence, so that scores and weighted sums are products of contiguous matrices, one per
        # head. Named `qkv` after norm and rotation, so that a backward pass that saves them recomputes neither.
        q_BNTH = self._project("query", "BTD,DNH->BNTH", self.config.heads, axes.HEADS)(x_BTD)
        return checkpoint_name(self._placed(q_BNTH, sequence, "query_norm", axes.HEADS), "qkv")

    def keys_values(self, x_BSD: jax.Array, sequence: SequenceInfo, cached: bool) -> tuple[jax.Array, jax.Array]:
        """Keys and values [B, K, S, H], the keys normalised and rotated. Where heads are sharded over more devices than
        there are key/value heads, each key/value head is repeated. With a cache, and with a norm whose parameters
        are of all heads, it is not repeated here; context_parallel.py then repeats it."""
        kv_heads, norm = self.config.kv_heads, self.config.qk_norm
        # A cache holds each key/value head once, and a norm over all heads has a scale for heads that are not repeated.
        as_they_are = cached or (norm is not None and norm.over != "head")
        copies = 1 if as_they_are else partition.head_copies(kv_heads)
        k_BKSH = self._project("key", "BTD,DKH->BKTH", kv_heads, axes.KV_HEADS, copies)(x_BSD)
        v_BKSH = self._project("value", "BTD,DKH->BKTH", kv_heads, axes.KV_HEADS, copies)(x_BSD)
        k_BKSH, v_BKSH = self._placed(k_BKSH, sequence, "key_norm", axes.KV_HEADS), self._clipped(v_BKSH)
        return checkpoint_name(k_BKSH, "qkv"), checkpoint_name(v_BKSH, "qkv")

    def sinks(self) -> jax.Array | None:
        """Attention sinks, one learned score a head, float32 [N]; None without sinks."""
        if not self.config.scores.sinks:
            return None
        zeros = annotated(nn.initializers.zeros_init(), (axes.HEADS,), Role.BIAS)
        return self.param("sinks", zeros, (self.config.heads,), self.precision.param_dtype).astype(jnp.float32)

    def biases(self, context: Context) -> jax.Array | None:
        """The table of biases by relative position, float32 [R, N]: the layer's own, or the one that layers share; None
        without either."""
        bias = self.config.scores.bias
        if not isinstance(bias, LayerRelativeBiasConfig):
            return context.bias_RN
        return RelativeBias(bias, self.config.heads, self.precision, name="relative_bias")()

    def out(self, y_BNTH: jax.Array) -> jax.Array:
        """Output projection, [B, T, D]."""
        config = self.config
        shape, logical_axes = (config.heads, config.head_dim, self.width), (axes.HEADS, axes.HEAD_DIM, axes.EMBED)
        bias = config.biased_output
        return LinearLayer("BNTH,NHD->BTD", shape, logical_axes, config.out_init, self.precision, bias, name="out")(
            y_BNTH
        )

    def _placed(self, x_BNTH: jax.Array, sequence: SequenceInfo, norm: str, heads_axis: str) -> jax.Array:
        if self.config.qk_norm is not None:
            x_BNTH = self.config.qk_norm.apply(x_BNTH, self.precision, norm, heads_axis)
        # Norm, clip, rotation: the order of OLMoE's code, which has all three.
        x_BNTH = self._clipped(x_BNTH)
        if self.config.position is not None:
            x_BNTH = self.config.position.rotate(x_BNTH, sequence.positions_BT, sequence.lengths_BT)
        return x_BNTH

    def _clipped(self, x_BNTH: jax.Array) -> jax.Array:
        limit = self.config.clip
        return x_BNTH if limit is None else jnp.clip(x_BNTH, -limit, limit)

    def _project(self, name: str, einsum: str, heads: int, heads_axis: str, copies: int = 1) -> LinearLayer:
        shape = (self.width, heads, self.config.head_dim)
        logical_axes = (axes.EMBED, heads_axis, axes.HEAD_DIM)
        init = self.config.query_init if name == "query" and self.config.query_init else self.config.init
        return LinearLayer(
            einsum, shape, logical_axes, init, self.precision, self.config.bias, copies=copies, name=name
        )


@configclass
class CrossAttentionConfig(AttentionConfig):
    """Cross-attention to the encoder output (Vaswani et al. 2017, arXiv:1706.03762, 3.2.3)."""

    mask: Mask = Bidirectional()

    def __post_init__(self):
        super().__post_init__()
        check(
            not isinstance(self.scores.bias, RelativeBiasConfig),
            "cross.scores.bias is a RelativeBiasConfig: cross-attention has no relative positions; set it to None",
        )

    def build(self, width: int, precision: Precision, name: str) -> "CrossAttention":
        return CrossAttention(self, width, precision, name=name)

    def matrix_flops(self, width: int, encoder_tokens: float = 1.0) -> float:
        """Forward FLOPs per token of the projections, with `encoder_tokens` encoder tokens per decoder token."""
        # Keys and values are projected once for each encoder token, queries and output for each decoder token.
        return 4 * width * (self.heads + self.kv_heads * encoder_tokens) * self.head_dim


class CrossAttention(Attention):
    """x [B, T, D] and the encoder output [B, S, D] of the context -> [B, T, D]."""

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: Context, state: KeyValues | None = None
    ) -> tuple[jax.Array, KeyValues | None]:
        """Attends to the encoder output. `state` caches its keys and values for later calls without encoder output."""
        config, keys_values = self.config, state
        # The encoder output is the same for all decoded tokens: later calls with a cache read the keys and values of
        # the first one.
        if context.encoded_BSD is not None and context.encoded is not None:
            keys_values = KeyValues(*self.keys_values(context.encoded_BSD, context.encoded, cached=state is not None))
            state = None if state is None else state.replaced(keys_values)
        if keys_values is None:
            raise ValueError(
                "cross-attention has neither an encoder output nor cached keys and values: the first call with a "
                "cache requires inputs.encoded"
            )
        given = {"bias_RN": context.bias_RN, "sink_N": self.sinks(), "drop": drop_of(self, config.dropout)}
        pairs = Pairs(config.mask, context.queries, context.encoded, config.scores, **given)
        q_BNTH = self.queries(x_BTD, context.queries)
        k_BKSH, v_BKSH = keys_values.k_BKSH, keys_values.v_BKSH
        tap(self, "weights", lambda: weights(q_BNTH, k_BKSH, pairs))
        y_BNTH = context_parallel.attend(config.kernel, q_BNTH, k_BKSH, v_BKSH, pairs, cached=state is not None)
        # A decoder document without an encoder document must not read the encoder documents of others.
        return self.out(zero_fully_masked(y_BNTH, pairs.allowed())), state

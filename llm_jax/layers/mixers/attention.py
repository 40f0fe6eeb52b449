"""Multi-head attention with grouped key/value heads.

Legend: B batch, T query length, S key length, D model width, N heads, K key/value heads, H head size.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm_jax.core.checks import check, check_divides, check_one_of, check_positive
from llm_jax.core.dtypes import Precision
from llm_jax.layers.linear import Init, Linear, Normal
from llm_jax.layers.mixers.cache import KeyValues
from llm_jax.layers.mixers.kernels import BlockedKernel, Kernel
from llm_jax.layers.mixers.masks import Causal, Mask, Placement
from llm_jax.layers.mixers.scores import ScoresConfig
from llm_jax.layers.norms import NormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.sharding import axes


@dataclasses.dataclass(frozen=True)
class QKNormConfig:
    """Queries and keys are normalised before they are rotated (Henry et al. 2020, arXiv:2010.04245; Dehghani et al.
    2023, arXiv:2302.05442, 2)."""

    norm: NormConfig
    over: Literal["head", "heads"] = "head"
    """`head`: each head's features, one scale for all heads (Qwen 3, Gemma 3). `heads`: all heads' features together
    (OLMo 2)."""

    def __post_init__(self):
        check_one_of("over", self.over, ("head", "heads"))

    def parameters(self, heads: int, kv_heads: int, head_dim: int) -> int:
        """Number of parameters."""
        query, key = (head_dim, head_dim) if self.over == "head" else (heads * head_dim, kv_heads * head_dim)
        return self.norm.parameters(query) + self.norm.parameters(key)

    def apply(self, x_BNTH: jax.Array, precision: Precision, name: str) -> jax.Array:
        """Normalised queries or keys; parameters are those of the module in whose method this is called."""
        norm = self.norm.build(precision, name)
        if self.over == "head":
            return norm(x_BNTH)
        batch, heads, length, head_dim = x_BNTH.shape
        x_BTM = norm(x_BNTH.transpose(0, 2, 1, 3).reshape(batch, length, heads * head_dim))
        return x_BTM.reshape(batch, length, heads, head_dim).transpose(0, 2, 1, 3)


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """Attention as in Vaswani et al. 2017 (arXiv:1706.03762, 3.2); with `kv_heads` < `heads` grouped-query attention
    (Ainslie et al. 2023, arXiv:2305.13245), with `kv_heads` = 1 multi-query (Shazeer 2019, arXiv:1911.02150)."""

    heads: int
    head_dim: int
    kv_heads: int
    mask: Mask = Causal()
    position: RoPEConfig | None = None
    """Positions by rotating queries and keys; None where the embedding carries them."""
    scores: ScoresConfig = ScoresConfig()
    qk_norm: QKNormConfig | None = None
    bias: bool = False
    """Biases on the projections of queries, keys and values."""
    out_bias: bool | None = None
    """A bias on the output projection; None: as `bias`."""
    init: Init = Normal(0.02)
    out_init: Init = Normal(0.02)
    """Initialiser of the output projection, which writes to the residual stream."""
    kernel: Kernel = BlockedKernel()

    def __post_init__(self):
        check_positive(heads=self.heads, head_dim=self.head_dim, kv_heads=self.kv_heads)
        check_divides(self.kv_heads, self.heads, "kv_heads", "heads")
        rotated = 0 if self.position is None else self.position.features or self.head_dim
        check(
            rotated % 2 == 0,
            f"head_dim is {self.head_dim}: rotary positions turn pairs, so it must be even; change it or `position`",
        )
        check(
            rotated <= self.head_dim,
            f"position.features is {rotated} and head_dim is {self.head_dim}: no more can be rotated than there are",
        )

    def build(self, width: int, precision: Precision, name: str) -> "Attention":
        return Attention(self, width, precision, name=name)

    def parameters(self, width: int) -> int:
        """Number of parameters at model width `width`."""
        query, key_value = self.heads * self.head_dim, self.kv_heads * self.head_dim
        norms = self.qk_norm.parameters(self.heads, self.kv_heads, self.head_dim) if self.qk_norm else 0
        biases = self.bias * (query + 2 * key_value) + self.biased_output * width
        return 2 * width * (query + key_value) + biases + norms

    @property
    def biased_output(self) -> bool:
        """Whether the output projection has a bias."""
        return self.bias if self.out_bias is None else self.out_bias

    def matrix_flops(self, width: int) -> int:
        """Forward FLOPs per token of the projections."""
        return 4 * width * (self.heads + self.kv_heads) * self.head_dim

    def mixing_flops(self, length: int) -> float:
        """Forward FLOPs per token of scores and weighted sum, only the pairs that the mask allows."""
        return 4 * self.heads * self.head_dim * self.mask.pairs(length)

    def allocate(self, batch: int, slots: int, dtype: jnp.dtype) -> KeyValues:
        """An empty state for `slots` tokens."""
        shape = (batch, self.kv_heads, slots, self.head_dim)
        return KeyValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


class Attention(nn.Module):
    """x [B, T, D] -> [B, T, D]."""

    config: AttentionConfig
    width: int
    precision: Precision

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        queries: Placement,
        slots: Placement | None = None,
        state: KeyValues | None = None,
        slot: jax.Array | None = None,
    ) -> tuple[jax.Array, KeyValues | None]:
        """Mixes tokens.

        Args:
          queries: where the T tokens of x stand.
          slots: where the tokens in the S slots of the cache stand; None without a cache.
          state: keys and values of earlier tokens, to which this call's are added at `slot`; None without a cache.
        """
        config = self.config
        q_BNTH = self._project("query", "BTD,DNH->BNTH", config.heads, axes.HEADS)(x_BTD)
        k_BKTH = self._project("key", "BTD,DKH->BKTH", config.kv_heads, axes.KV_HEADS)(x_BTD)
        v_BKTH = self._project("value", "BTD,DKH->BKTH", config.kv_heads, axes.KV_HEADS)(x_BTD)
        if config.qk_norm is not None:
            q_BNTH = config.qk_norm.apply(q_BNTH, self.precision, "query_norm")
            k_BKTH = config.qk_norm.apply(k_BKTH, self.precision, "key_norm")
        if config.position is not None:
            q_BNTH = config.position.rotate(q_BNTH, queries.positions_BT)
            k_BKTH = config.position.rotate(k_BKTH, queries.positions_BT)
        q_BNTH, k_BKTH, v_BKTH = (checkpoint_name(array, "qkv") for array in (q_BNTH, k_BKTH, v_BKTH))
        if state is not None:
            state = state.write(k_BKTH, v_BKTH, slot)
            k_BKTH, v_BKTH = state.k_BKSH, state.v_BKSH
        y_BNTH = config.kernel.attend(q_BNTH, k_BKTH, v_BKTH, config.mask, queries, slots, config.scores)
        out = Linear(
            "BNTH,NHD->BTD",
            (config.heads, config.head_dim, self.width),
            (axes.HEADS, axes.HEAD_DIM, axes.EMBED),
            config.out_init,
            self.precision,
            config.biased_output,
            name="out",
        )
        return out(y_BNTH), state

    def _project(self, name: str, einsum: str, heads: int, heads_axis: str) -> Linear:
        shape = (self.width, heads, self.config.head_dim)
        words = (axes.EMBED, heads_axis, axes.HEAD_DIM)
        return Linear(einsum, shape, words, self.config.init, self.precision, self.config.bias, name=name)

"""Multi-head attention with grouped key/value heads.

Legend: B batch, T query length, S key length, D model width, N heads, K key/value heads, H head size.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm_jax.core.checks import check, check_divides, check_positive
from llm_jax.core.dtypes import Precision
from llm_jax.layers.linear import Init, Linear, Normal
from llm_jax.layers.mixers.cache import KeyValues
from llm_jax.layers.mixers.kernels import BlockedKernel, Kernel
from llm_jax.layers.mixers.masks import Causal, Mask, Placement
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.sharding import axes


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
    bias: bool = False
    """Biases on all four projections."""
    init: Init = Normal(0.02)
    out_init: Init = Normal(0.02)
    """Initialiser of the output projection, which writes to the residual stream."""
    kernel: Kernel = BlockedKernel()

    def __post_init__(self):
        check_positive(heads=self.heads, head_dim=self.head_dim, kv_heads=self.kv_heads)
        check_divides(self.kv_heads, self.heads, "kv_heads", "heads")
        check(
            self.position is None or self.head_dim % 2 == 0,
            f"head_dim is {self.head_dim}: rotary positions turn pairs, so it must be even; change it or `position`",
        )

    def build(self, width: int, precision: Precision, name: str) -> "Attention":
        return Attention(self, width, precision, name=name)

    def parameters(self, width: int) -> int:
        """Number of parameters at model width `width`."""
        query, key_value = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return 2 * width * (query + key_value) + self.bias * (query + 2 * key_value + width)

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
        if config.position is not None:
            q_BNTH = config.position.rotate(q_BNTH, queries.positions_BT)
            k_BKTH = config.position.rotate(k_BKTH, queries.positions_BT)
        q_BNTH, k_BKTH, v_BKTH = (checkpoint_name(array, "qkv") for array in (q_BNTH, k_BKTH, v_BKTH))
        if state is not None:
            state = state.write(k_BKTH, v_BKTH, slot)
            k_BKTH, v_BKTH = state.k_BKSH, state.v_BKSH
        y_BNTH = config.kernel.attend(q_BNTH, k_BKTH, v_BKTH, config.mask, queries, slots)
        out = Linear(
            "BNTH,NHD->BTD",
            (config.heads, config.head_dim, self.width),
            (axes.HEADS, axes.HEAD_DIM, axes.EMBED),
            config.out_init,
            self.precision,
            config.bias,
            name="out",
        )
        return out(y_BNTH), state

    def _project(self, name: str, einsum: str, heads: int, heads_axis: str) -> Linear:
        shape = (self.width, heads, self.config.head_dim)
        words = (axes.EMBED, heads_axis, axes.HEAD_DIM)
        return Linear(einsum, shape, words, self.config.init, self.precision, self.config.bias, name=name)

"""The attention seam: softmax(q k^T) v in interchangeable forms, chosen by config type.

Legend: B batch, T query length, S key length, K key/value heads, G query heads per key/value head, N = K * G heads,
H head size.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class PlainKernel:
    """All scores at once: memory grows with T * S. Softmax in float32."""

    def attend(self, q_BNTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, allowed: jax.Array) -> jax.Array:
        """Attention output [B, N, T, H].

        Args:
          allowed: boolean [B or 1, T or 1, S or 1]. A query that may see nothing (padding) averages all values:
            finite, and counted nowhere.
        """
        batch, heads, length, head_dim = q_BNTH.shape
        kv_heads = k_BKSH.shape[1]
        q_BKGTH = q_BNTH.reshape(batch, kv_heads, heads // kv_heads, length, head_dim)
        scores = jnp.einsum("BKGTH,BKSH->BKGTS", q_BKGTH, k_BKSH, preferred_element_type=jnp.float32)
        scores = scores * head_dim**-0.5
        scores = jnp.where(allowed[:, None, None], scores, jnp.finfo(jnp.float32).min)
        weights_BKGTS = jax.nn.softmax(scores, axis=-1).astype(v_BKSH.dtype)
        y_BKGTH = jnp.einsum("BKGTS,BKSH->BKGTH", weights_BKGTS, v_BKSH)
        return y_BKGTH.reshape(q_BNTH.shape)


Kernel = PlainKernel

"""The attention seam: softmax(q k^T) v in interchangeable forms, chosen by config type.

Legend: B batch, T query length, S key length, K key/value heads, G query heads per key/value head, N = K * G heads,
H head size, M = G * T.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm_jax.core.checks import check_positive
from llm_jax.layers.mixers.masks import Mask, Placement


@dataclasses.dataclass(frozen=True)
class PlainKernel:
    """All scores at once: memory and work grow with T * S."""

    def attend(
        self,
        q_BNTH: jax.Array,
        k_BKSH: jax.Array,
        v_BKSH: jax.Array,
        mask: Mask,
        queries: Placement,
        slots: Placement | None,
    ) -> jax.Array:
        """Attention output [B, N, T, H].

        Args:
          queries: where the T tokens stand.
          slots: where the S keys stand; None: the keys are those of the same tokens.
        """
        if slots is not None:
            return attend(q_BNTH, k_BKSH, v_BKSH, mask.across(queries, slots))
        row = slice(0, q_BNTH.shape[2])
        return attend(q_BNTH, k_BKSH, v_BKSH, mask.within(queries, row, row))


@dataclasses.dataclass(frozen=True)
class BlockedKernel:
    """Blocks of queries, each against only those keys that its mask can reach: causal attention costs half.

    With a cache it is the plain kernel.
    """

    block: int = 128
    """Queries per block."""

    def __post_init__(self):
        check_positive(block=self.block)

    def attend(
        self,
        q_BNTH: jax.Array,
        k_BKSH: jax.Array,
        v_BKSH: jax.Array,
        mask: Mask,
        queries: Placement,
        slots: Placement | None,
    ) -> jax.Array:
        """As `PlainKernel.attend`."""
        if slots is not None:
            return PlainKernel().attend(q_BNTH, k_BKSH, v_BKSH, mask, queries, slots)
        length = q_BNTH.shape[2]
        blocks = []
        for start in range(0, length, self.block):
            rows = slice(start, min(start + self.block, length))
            columns = mask.columns(rows, length)
            allowed = mask.within(queries, rows, columns)
            blocks.append(attend(q_BNTH[:, :, rows], k_BKSH[:, :, columns], v_BKSH[:, :, columns], allowed))
        return jnp.concatenate(blocks, axis=2)


Kernel = BlockedKernel | PlainKernel


def attend(q_BNTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, allowed: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v, [B, N, T, H]; scores and softmax in float32.

    Args:
      allowed: boolean [B or 1, T or 1, S or 1]. A query that may see nothing (padding) averages all values: finite,
        and counted nowhere.
    """
    batch, heads, length, head_dim = q_BNTH.shape
    groups = heads // k_BKSH.shape[1]
    q_BKMH = q_BNTH.reshape(batch, -1, groups * length, head_dim)
    allowed = jnp.broadcast_to(allowed, (allowed.shape[0], length, k_BKSH.shape[2]))
    allowed_B1MS = jnp.tile(allowed, (1, groups, 1))[:, None]
    return _attend(q_BKMH, k_BKSH, v_BKSH, allowed_B1MS).reshape(q_BNTH.shape)


@jax.custom_vjp
def _attend(q_BKMH, k_BKSH, v_BKSH, allowed_B1MS):
    return _forward(q_BKMH, k_BKSH, v_BKSH, allowed_B1MS)[0]


def _forward(q_BKMH, k_BKSH, v_BKSH, allowed_B1MS):
    """Keeps the exponentials in the compute type and divides the context by their sum: one pass over the scores less
    than a softmax, and half its memory in bfloat16."""
    scores = jnp.einsum("BKMH,BKSH->BKMS", q_BKMH, k_BKSH, preferred_element_type=jnp.float32)
    scores = jnp.where(allowed_B1MS, scores * q_BKMH.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)
    exp_BKMS = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    inverse_BKM1 = 1 / jnp.sum(exp_BKMS, axis=-1, keepdims=True)
    exp_BKMS = exp_BKMS.astype(v_BKSH.dtype)
    y_BKMH = (jnp.einsum("BKMS,BKSH->BKMH", exp_BKMS, v_BKSH) * inverse_BKM1).astype(v_BKSH.dtype)
    # Named here and not by the caller: the backward pass needs this array, and a remat policy that keeps another
    # would compute it again.
    y_BKMH = checkpoint_name(y_BKMH, "context")
    return y_BKMH, (q_BKMH, k_BKSH, v_BKSH, exp_BKMS, inverse_BKM1, y_BKMH)


def _backward(residuals, dy_BKMH):
    q_BKMH, k_BKSH, v_BKSH, exp_BKMS, inverse_BKM1, y_BKMH = residuals
    scaled = (dy_BKMH * inverse_BKM1).astype(v_BKSH.dtype)
    dv_BKSH = jnp.einsum("BKMS,BKMH->BKSH", exp_BKMS, scaled)
    dweights = jnp.einsum("BKMH,BKSH->BKMS", dy_BKMH, v_BKSH, preferred_element_type=jnp.float32)
    # sum_S(weights * dweights), which the softmax needs, is dy . y (Dao et al. 2022, arXiv:2205.14135, B.2).
    mean_BKM1 = jnp.sum(dy_BKMH.astype(jnp.float32) * y_BKMH.astype(jnp.float32), axis=-1, keepdims=True)
    dscores = (exp_BKMS * ((dweights - mean_BKM1) * (inverse_BKM1 * q_BKMH.shape[-1] ** -0.5))).astype(q_BKMH.dtype)
    dq_BKMH = jnp.einsum("BKMS,BKSH->BKMH", dscores, k_BKSH)
    dk_BKSH = jnp.einsum("BKMS,BKMH->BKSH", dscores, q_BKMH)
    return dq_BKMH, dk_BKSH, dv_BKSH, None


_attend.defvjp(_forward, _backward)

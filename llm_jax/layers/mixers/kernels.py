"""The attention seam: softmax(q k^T) v in interchangeable forms, chosen by config type.

Legend: B batch, T query length, S key length, K key/value heads, G query heads per key/value head, N = K * G heads,
H head size, M = G * T.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm_jax.core.checks import check_positive
from llm_jax.layers.mixers.masks import Mask, Placement
from llm_jax.layers.mixers.scores import ScoresConfig


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
        scores: ScoresConfig,
        bias_RN: jax.Array | None = None,
    ) -> jax.Array:
        """Attention output [B, N, T, H].

        Args:
          queries: where the T tokens stand.
          slots: where the S keys stand; None: the keys are those of the same tokens.
          bias_RN: the table of learned biases, where `scores` has such.
        """
        heads, length = q_BNTH.shape[1:3]
        if slots is not None:
            allowed, bias = mask.across(queries, slots), scores.across(heads, queries, slots, bias_RN)
        else:
            row = slice(0, length)
            allowed, bias = mask.within(queries, row, row), scores.within(heads, row, row, bias_RN)
        return attend(q_BNTH, k_BKSH, v_BKSH, allowed, bias, scores.scale, scores.softcap)


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
        scores: ScoresConfig,
        bias_RN: jax.Array | None = None,
    ) -> jax.Array:
        """As `PlainKernel.attend`."""
        if slots is not None:
            return PlainKernel().attend(q_BNTH, k_BKSH, v_BKSH, mask, queries, slots, scores, bias_RN)
        heads, length = q_BNTH.shape[1:3]
        blocks = []
        for start in range(0, length, self.block):
            rows = slice(start, min(start + self.block, length))
            columns = mask.columns(rows, length)
            allowed = mask.within(queries, rows, columns)
            bias = scores.within(heads, rows, columns, bias_RN)
            q, k, v = q_BNTH[:, :, rows], k_BKSH[:, :, columns], v_BKSH[:, :, columns]
            blocks.append(attend(q, k, v, allowed, bias, scores.scale, scores.softcap))
        return jnp.concatenate(blocks, axis=2)


Kernel = BlockedKernel | PlainKernel


def attend(
    q_BNTH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    allowed: jax.Array,
    bias: jax.Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """softmax(softcap(q k^T * scale) + bias) v, [B, N, T, H]; scores and softmax in float32.

    Args:
      v_BKSH: values, whose size of a head may be another than that of queries and keys; the output has theirs.
      allowed: boolean [B or 1, T or 1, S or 1]. A query that may see nothing (padding) averages all values: finite,
        and counted nowhere.
      bias: float32 [B or 1, N, T, S].
      scale: None: 1 / sqrt(H).
      softcap: None: scores stay as they are.
    """
    batch, heads, length, head_dim = q_BNTH.shape
    kv_heads, slots = k_BKSH.shape[1:3]
    groups = heads // kv_heads
    q_BKMH = q_BNTH.reshape(batch, kv_heads, groups * length, head_dim)
    allowed = jnp.broadcast_to(allowed, (allowed.shape[0], length, slots))
    allowed_B1MS = jnp.tile(allowed, (1, groups, 1))[:, None]
    if bias is not None:
        bias = jnp.asarray(bias).reshape(-1, kv_heads, groups * length, slots)
    scale = head_dim**-0.5 if scale is None else scale
    return _attend(q_BKMH, k_BKSH, v_BKSH, bias, allowed_B1MS, scale, softcap).reshape(batch, heads, length, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q_BKMH, k_BKSH, v_BKSH, bias_BKMS, allowed_B1MS, scale, softcap):
    return _forward(q_BKMH, k_BKSH, v_BKSH, bias_BKMS, allowed_B1MS, scale, softcap)[0]


def _forward(q_BKMH, k_BKSH, v_BKSH, bias_BKMS, allowed_B1MS, scale, softcap):
    """Keeps the exponentials in the compute type and divides the context by their sum: one pass over the scores less
    than a softmax, and half its memory in bfloat16."""
    scores, _ = _scores(q_BKMH, k_BKSH, scale, softcap)
    if bias_BKMS is not None:
        scores += bias_BKMS
    scores = jnp.where(allowed_B1MS, scores, jnp.finfo(jnp.float32).min)
    exp_BKMS = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    inverse_BKM1 = 1 / jnp.sum(exp_BKMS, axis=-1, keepdims=True)
    exp_BKMS = exp_BKMS.astype(v_BKSH.dtype)
    y_BKMH = (jnp.einsum("BKMS,BKSH->BKMH", exp_BKMS, v_BKSH) * inverse_BKM1).astype(v_BKSH.dtype)
    # Named here and not by the caller: the backward pass needs this array, and a remat policy that keeps another
    # would compute it again.
    y_BKMH = checkpoint_name(y_BKMH, "context")
    return y_BKMH, (q_BKMH, k_BKSH, v_BKSH, bias_BKMS, exp_BKMS, inverse_BKM1, y_BKMH)


def _scores(q_BKMH, k_BKSH, scale, softcap):
    """Scores without their bias, and their derivative by q k^T."""
    scores_BKMS = jnp.einsum("BKMH,BKSH->BKMS", q_BKMH, k_BKSH, preferred_element_type=jnp.float32) * scale
    if softcap is None:
        return scores_BKMS, scale
    squashed_BKMS = jnp.tanh(scores_BKMS / softcap)
    return softcap * squashed_BKMS, scale * (1 - jnp.square(squashed_BKMS))


def _backward(scale, softcap, residuals, dy_BKMH):
    q_BKMH, k_BKSH, v_BKSH, bias_BKMS, exp_BKMS, inverse_BKM1, y_BKMH = residuals
    scaled = (dy_BKMH * inverse_BKM1).astype(v_BKSH.dtype)
    dv_BKSH = jnp.einsum("BKMS,BKMH->BKSH", exp_BKMS, scaled)
    dweights = jnp.einsum("BKMH,BKSH->BKMS", dy_BKMH, v_BKSH, preferred_element_type=jnp.float32)
    # sum_S(weights * dweights), which the softmax needs, is dy . y (Dao et al. 2022, arXiv:2205.14135, B.2).
    mean_BKM1 = jnp.sum(dy_BKMH.astype(jnp.float32) * y_BKMH.astype(jnp.float32), axis=-1, keepdims=True)
    # The capped scores are computed again: keeping them would cost as much memory as the exponentials.
    derivative = scale if softcap is None else _scores(q_BKMH, k_BKSH, scale, softcap)[1]
    dlogits = (dweights - mean_BKM1) * inverse_BKM1
    dscores = (exp_BKMS * (dlogits * derivative)).astype(q_BKMH.dtype)
    dq_BKMH = jnp.einsum("BKMS,BKSH->BKMH", dscores, k_BKSH)
    dk_BKSH = jnp.einsum("BKMS,BKMH->BKSH", dscores, q_BKMH)
    return dq_BKMH, dk_BKSH, dv_BKSH, _bias_gradient(bias_BKMS, exp_BKMS, dlogits), None


def _bias_gradient(bias_BKMS, exp_BKMS, dlogits):
    """Summed over the axes along which the bias is repeated; dropped by the compiler where the bias is a constant."""
    if bias_BKMS is None:
        return None
    dbias = exp_BKMS * dlogits
    return jnp.sum(dbias, axis=0, keepdims=True) if bias_BKMS.shape[0] == 1 else dbias


_attend.defvjp(_forward, _backward)

"""softmax(q k^T) v with all scores at once, and functions that blockwise attention shares with it.

Legend: B batch, T query length, S key length, K key/value heads, G query heads per key/value head, N = K * G heads,
H head size, M = G * T.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm_jax.layers.derivative import custom_vjp
from llm_jax.layers.products import over_rows_of_each


def attend(
    q_BNTH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    allowed: jax.Array,
    bias: jax.Array | None = None,
    sink_N: jax.Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    kept: jax.Array | None = None,
    rate: float = 0.0,
) -> jax.Array:
    """softmax(softcap(q k^T * scale) + bias) v, [B, N, T, H]; scores and softmax in float32.

    Args:
      allowed: boolean [B or 1, T or 1, S or 1]. A fully masked query (padding) averages all values: its output is
        finite and not used.
      bias: float32 [B or 1, N, T, S].
      sink_N: float32, one more score per head, whose value is zero.
      scale: None: 1 / sqrt(H).
      softcap: None: no cap.
      kept: boolean [B, N, T, S], the weights that dropout keeps, divided by 1 - rate; None: all of them.
    """
    batch, heads, length, head_dim = q_BNTH.shape
    kv_heads, slots = k_BKSH.shape[1:3]
    q_BKMH = fold(q_BNTH, kv_heads)
    bias_BKMS = None if bias is None else fold(bias, kv_heads)
    allowed_B1MS = fold_mask(allowed, heads // kv_heads, length, slots)
    sink_BKM1 = None if sink_N is None else fold_sinks(sink_N, length, kv_heads)
    scale = head_dim**-0.5 if scale is None else scale
    kept_BKMS = None if kept is None else fold(kept, kv_heads)
    factor = 1.0 if kept is None else 1 / (1 - rate)
    y_BKMH = _attend(q_BKMH, k_BKSH, v_BKSH, bias_BKMS, allowed_B1MS, sink_BKM1, kept_BKMS, scale, softcap, factor)
    return y_BKMH.reshape(batch, heads, length, v_BKSH.shape[-1])


def zero_fully_masked(y_BNTH: jax.Array, allowed: jax.Array) -> jax.Array:
    """The output of attention [B, N, T, H] with zeros for queries whose keys are all masked: kernels may return the
    average of all values for them, masked ones included.

    Args:
      allowed: boolean [B or 1, T or 1, S or 1].
    """
    return jnp.where(jnp.any(allowed, axis=-1)[:, None, :, None], y_BNTH, 0)


def fold(x_BNTH: jax.Array, kv_heads: int) -> jax.Array:
    """Merges the query heads that share keys into one axis, [B, K, M, H], so that one product serves them all. Biases
    are folded in the same way, with S for H."""
    batch, heads, length, head_dim = x_BNTH.shape
    return x_BNTH.reshape(batch, kv_heads, heads // kv_heads * length, head_dim)


def fold_sinks(sink_N: jax.Array, length: int, kv_heads: int) -> jax.Array:
    """Sinks of `length` queries of each head, [1, K, M, 1]."""
    return fold(jnp.broadcast_to(sink_N[None, :, None, None], (1, len(sink_N), length, 1)), kv_heads)


def fold_mask(allowed: jax.Array, groups: int, length: int, slots: int) -> jax.Array:
    """[B or 1, T or 1, S or 1] -> [B or 1, 1, M, S]."""
    allowed = jnp.broadcast_to(allowed, (allowed.shape[0], length, slots))
    return jnp.tile(allowed, (1, groups, 1))[:, None]


@custom_vjp(7, 8, 9)
def _attend(q_BKMH, k_BKSH, v_BKSH, bias_BKMS, allowed_B1MS, sink_BKM1, kept_BKMS, scale, softcap, factor) -> jax.Array:
    """`factor` multiplies the weights that are kept."""
    return _forward(q_BKMH, k_BKSH, v_BKSH, bias_BKMS, allowed_B1MS, sink_BKM1, kept_BKMS, scale, softcap, factor)[0]


def _forward(q_BKMH, k_BKSH, v_BKSH, bias_BKMS, allowed_B1MS, sink_BKM1, kept_BKMS, scale, softcap, factor):
    """Keeps the exponentials in the compute dtype and divides the output by their sum. This saves one pass over the
    scores compared with a softmax, and half its memory in bfloat16."""
    scores, _ = products(q_BKMH, k_BKSH, scale, softcap)
    if bias_BKMS is not None:
        scores += bias_BKMS
    # Not -inf: for a fully masked query the largest score would be -inf, and -inf - -inf is NaN.
    scores = jnp.where(allowed_B1MS, scores, jnp.finfo(jnp.float32).min)
    largest_BKM1 = jnp.max(scores, axis=-1, keepdims=True)
    if sink_BKM1 is not None:
        largest_BKM1 = jnp.maximum(largest_BKM1, sink_BKM1)
    exp_BKMS = jnp.exp(scores - largest_BKM1)
    # Summed before the exponentials are rounded to the compute dtype.
    total_BKM1, sunk_BKM1 = jnp.sum(exp_BKMS, axis=-1, keepdims=True), None
    if sink_BKM1 is not None:
        sunk_BKM1 = jnp.exp(sink_BKM1 - largest_BKM1)
        total_BKM1 += sunk_BKM1
    inverse_BKM1 = 1 / total_BKM1
    exp_BKMS = exp_BKMS.astype(v_BKSH.dtype)
    y_BKMH = jnp.einsum("BKMS,BKSH->BKMH", _thinned(exp_BKMS, kept_BKMS), v_BKSH)
    y_BKMH = (y_BKMH * _times(inverse_BKM1, factor)).astype(v_BKSH.dtype)
    # Named here and not by the caller: the backward pass needs this very array, and a remat policy that saves another
    # one would recompute it.
    y_BKMH = checkpoint_name(y_BKMH, "context")
    return y_BKMH, (q_BKMH, k_BKSH, v_BKSH, bias_BKMS, exp_BKMS, sunk_BKM1, inverse_BKM1, kept_BKMS, y_BKMH)


def _thinned(x_BKMS: jax.Array, kept_BKMS: jax.Array | None) -> jax.Array:
    """`x` with zeros at the weights that dropout drops."""
    return x_BKMS if kept_BKMS is None else jnp.where(kept_BKMS, x_BKMS, 0)


def _times(x: jax.Array, factor: float) -> jax.Array:
    return x if factor == 1 else x * factor


def products(
    q_BKMH: jax.Array, k_BKSH: jax.Array, scale: float, softcap: float | None
) -> tuple[jax.Array, jax.Array | float]:
    """Scores without their bias, [B, K, M, S] float32, and their derivative by q k^T."""
    scores_BKMS = jnp.einsum("BKMH,BKSH->BKMS", q_BKMH, k_BKSH, preferred_element_type=jnp.float32) * scale
    if softcap is None:
        return scores_BKMS, scale
    squashed_BKMS = jnp.tanh(scores_BKMS / softcap)
    return softcap * squashed_BKMS, scale * (1 - jnp.square(squashed_BKMS))


def _backward(scale, softcap, factor, residuals, dy_BKMH):
    q_BKMH, k_BKSH, v_BKSH, bias_BKMS, exp_BKMS, sunk_BKM1, inverse_BKM1, kept_BKMS, y_BKMH = residuals
    # The exponentials are saved without the division by their sum. It is applied to dy here, to H numbers a query and
    # not to S.
    scaled = (dy_BKMH * _times(inverse_BKM1, factor)).astype(v_BKSH.dtype)
    dv_BKSH = over_rows_of_each(_thinned(exp_BKMS, kept_BKMS), scaled)
    dweights = jnp.einsum("BKMH,BKSH->BKMS", dy_BKMH, v_BKSH, preferred_element_type=jnp.float32)
    dweights = _times(_thinned(dweights, kept_BKMS), factor)
    # sum_S(weights * dweights), which the softmax needs, is dy . y (Dao et al. 2022, arXiv:2205.14135, B.2).
    mean_BKM1 = jnp.sum(dy_BKMH.astype(jnp.float32) * y_BKMH.astype(jnp.float32), axis=-1, keepdims=True)
    # The capped scores are recomputed: keeping them would cost as much memory as the exponentials.
    derivative = scale if softcap is None else products(q_BKMH, k_BKSH, scale, softcap)[1]
    dlogits = (dweights - mean_BKM1) * inverse_BKM1
    dscores = (exp_BKMS * (dlogits * derivative)).astype(q_BKMH.dtype)
    dq_BKMH = jnp.einsum("BKMS,BKSH->BKMH", dscores, k_BKSH)
    dk_BKSH = over_rows_of_each(dscores, q_BKMH)
    # The value of a sink is zero, and so is the gradient of its weight.
    dsink = None if sunk_BKM1 is None else -jnp.sum(sunk_BKM1 * inverse_BKM1 * mean_BKM1, axis=0, keepdims=True)
    # None: masks are booleans without gradients.
    return dq_BKMH, dk_BKSH, dv_BKSH, bias_gradient(bias_BKMS, exp_BKMS * dlogits), None, dsink, None


def bias_gradient(bias_BKMS: jax.Array | None, dbias_BKMS: jax.Array) -> jax.Array | None:
    """Gradient of the bias, summed over the batch axis if the bias is broadcast along it. The compiler removes it where
    the bias is a constant."""
    if bias_BKMS is None:
        return None
    return jnp.sum(dbias_BKMS, axis=0, keepdims=True) if bias_BKMS.shape[0] == 1 else dbias_BKMS


_attend.defvjp(_forward, _backward)

"""Attention block by block, in memory that grows with the length and not with its square, forward and backward.

A block of queries meets the blocks of keys that it can see one after another and keeps, of what it has met, only the
largest score, the sum of the exponentials and their sum of values (Rabe and Staats 2021, arXiv:2112.05682, section 2).
The backward pass is given the logarithm of that sum and makes the scores of every two blocks again (Dao et al. 2022,
arXiv:2205.14135, algorithm 4).

Legend: B batch, T query length, S key length, K key/value heads, G query heads per key/value head, N = K * G heads,
H head size, C queries of a block, M = G * C, D keys of a block, R buckets of relative places.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from llm_jax.layers.mixers.pairs import Pairs
from llm_jax.layers.mixers.softmax import bias_gradient, fold, fold_mask, products

_LEAST = jnp.finfo(jnp.float32).min
"""Below every score, yet finite: a block in which a query sees nothing leaves no infinity behind."""


class _Met(NamedTuple):
    """What a block of queries keeps of the keys that it has met, float32."""

    largest_BKM1: jax.Array
    sum_BKM1: jax.Array
    values_BKMH: jax.Array


class _Gradients(NamedTuple):
    """Of keys, values and the table of biases, summed over the pairs of blocks met so far, float32."""

    k_BKSH: jax.Array
    v_BKSH: jax.Array
    bias_RN: jax.Array | None


def visits(pairs: Pairs, block: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last but one of the blocks of keys that each block of queries meets, [blocks of queries] each."""
    rows, columns = _sizes(pairs, block)
    length = pairs.shape[0]
    reach = [pairs.columns(slice(start, min(start + rows, length))) for start in range(0, length, rows)]
    first = np.array([part.start // columns for part in reach], np.int32)
    return first, np.array([-(-part.stop // columns) for part in reach], np.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(block: int, q_BNTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, pairs: Pairs) -> jax.Array:
    """Attention output [B, N, T, H], made of blocks of `block` queries and keys. A query that sees nothing gives 0."""
    return _forward(block, q_BNTH, k_BKSH, v_BKSH, pairs)[0]


def _forward(block, q_BNTH, k_BKSH, v_BKSH, pairs):
    rows, columns = _sizes(pairs, block)
    q, k, v = _padded(q_BNTH, rows), _padded(k_BKSH, columns), _padded(v_BKSH, columns)
    kv_heads = k.shape[1]

    def queries(place):
        index, first, last = place
        q_BKMH = fold(_part(q, index, rows), kv_heads)

        def meet(other, met: _Met) -> _Met:
            scores, _, _ = _tile(block, pairs, q_BKMH, _part(k, other, columns), index, other)
            largest = jnp.maximum(met.largest_BKM1, jnp.max(scores, axis=-1, keepdims=True))
            exp_BKMS, shrink = jnp.exp(scores - largest), jnp.exp(met.largest_BKM1 - largest)
            values = _product("BKMS,BKSH->BKMH", exp_BKMS.astype(v.dtype), _part(v, other, columns))
            total = met.sum_BKM1 * shrink + jnp.sum(exp_BKMS, axis=-1, keepdims=True)
            return _Met(largest, total, met.values_BKMH * shrink + values)

        nothing = jnp.zeros((*q_BKMH.shape[:3], 1), jnp.float32)
        start = _Met(nothing + _LEAST, nothing, jnp.zeros((*q_BKMH.shape[:3], v.shape[-1]), jnp.float32))
        met = jax.lax.fori_loop(first, last, meet, start)
        total = jnp.maximum(met.sum_BKM1, jnp.finfo(jnp.float32).tiny)
        y_BKMH, log_sum_BKM1 = (met.values_BKMH / total).astype(v.dtype), met.largest_BKM1 + jnp.log(total)
        return tuple(x.reshape(*q_BNTH.shape[:2], rows, -1) for x in (y_BKMH, log_sum_BKM1))

    y, log_sum_BNT1 = (_joined(x) for x in jax.lax.map(queries, _places(pairs, block)))
    # What the backward pass needs and cannot make without the loop: a remat policy that keeps the context keeps both.
    y_BNTH = checkpoint_name(y[:, :, : q_BNTH.shape[2]], "context")
    return y_BNTH, (q_BNTH, k_BKSH, v_BKSH, pairs, y_BNTH, checkpoint_name(log_sum_BNT1, "context"))


def _backward(block, residuals, dy_BNTH):
    q_BNTH, k_BKSH, v_BKSH, pairs, y_BNTH, log_sum_BNT1 = residuals
    rows, columns = _sizes(pairs, block)
    k, v, kv_heads = _padded(k_BKSH, columns), _padded(v_BKSH, columns), k_BKSH.shape[1]
    # sum_S(weights * dweights), which the softmax needs, is dy . y (Dao et al. 2022, arXiv:2205.14135, B.2).
    mean_BNT1 = jnp.sum(dy_BNTH.astype(jnp.float32) * y_BNTH.astype(jnp.float32), axis=-1, keepdims=True)
    by_query = (_padded(q_BNTH, rows), _padded(dy_BNTH, rows), _padded(mean_BNT1, rows), log_sum_BNT1)

    def queries(gradients: _Gradients, place):
        index, first, last = place
        q_BKMH, dy_BKMH, mean_BKM1, log_sum_BKM1 = (fold(_part(x, index, rows), kv_heads) for x in by_query)

        def meet(other, carry: tuple[_Gradients, jax.Array]) -> tuple[_Gradients, jax.Array]:
            (dk, dv, dtable), dq_BKMH = carry
            keys, values = _part(k, other, columns), _part(v, other, columns)
            scores, derivative, to_table = _tile(block, pairs, q_BKMH, keys, index, other)
            weights = jnp.exp(scores - log_sum_BKM1)
            dv = _added(dv, other, _product("BKMS,BKMH->BKSH", weights.astype(v.dtype), dy_BKMH))
            dlogits = weights * (_product("BKMH,BKSH->BKMS", dy_BKMH, values) - mean_BKM1)
            dscores = (dlogits * derivative).astype(k.dtype)
            dk = _added(dk, other, _product("BKMS,BKMH->BKSH", dscores, q_BKMH))
            dtable = jax.tree.map(jnp.add, dtable, to_table(dlogits))
            return _Gradients(dk, dv, dtable), dq_BKMH + _product("BKMS,BKSH->BKMH", dscores, keys)

        gradients, dq_BKMH = jax.lax.fori_loop(first, last, meet, (gradients, _zeros(q_BKMH)))
        return gradients, dq_BKMH.reshape(*q_BNTH.shape[:2], rows, -1).astype(q_BNTH.dtype)

    start = _Gradients(*jax.tree.map(_zeros, (k, v, pairs.bias_RN)))
    (dk, dv, dtable), dq = jax.lax.scan(queries, start, _places(pairs, block))
    length, slots = pairs.shape
    dk_BKSH, dv_BKSH = dk[:, :, :slots].astype(k.dtype), dv[:, :, :slots].astype(v.dtype)
    dtable = jax.tree.map(lambda sum_RN, table_RN: sum_RN.astype(table_RN.dtype), dtable, pairs.bias_RN)
    return _joined(dq)[:, :, :length], dk_BKSH, dv_BKSH, pairs.replace(queries=None, slots=None, bias_RN=dtable)


attend.defvjp(_forward, _backward)


def _tile(
    block: int, pairs: Pairs, q_BKMH: jax.Array, k_BKDH: jax.Array, index: jax.Array, other: jax.Array
) -> tuple[jax.Array, jax.Array | float, Callable[[jax.Array], jax.Array | None]]:
    """Scores of block `index` of queries and `other` of keys, minus infinity where not allowed, [B, K, M, D] float32;
    their derivative by q k^T; and what makes the gradient of the table of biases of theirs."""
    kv_heads, slots = k_BKDH.shape[1], pairs.shape[1]
    rows, columns = (i * size + jnp.arange(size) for i, size in zip((index, other), _sizes(pairs, block), strict=True))
    groups = q_BKMH.shape[2] // len(rows)

    def biases(table_RN):
        bias = pairs.replace(bias_RN=table_RN).bias(kv_heads * groups, rows, columns)
        return None if bias is None else fold(bias, kv_heads)

    bias_BKMS, pull = jax.vjp(biases, pairs.bias_RN)
    scale = q_BKMH.shape[-1] ** -0.5 if pairs.scores.scale is None else pairs.scores.scale
    scores, derivative = products(q_BKMH, k_BKDH, scale, pairs.scores.softcap)
    scores = scores if bias_BKMS is None else scores + bias_BKMS
    # The last block may be longer than the keys: past them there is nothing to see.
    allowed = pairs.allowed(rows, columns) & (columns < slots)
    scores = jnp.where(fold_mask(allowed, groups, len(rows), len(columns)), scores, -jnp.inf)
    return scores, derivative, lambda dbias_BKMS: pull(bias_gradient(bias_BKMS, dbias_BKMS))[0]


def _sizes(pairs: Pairs, block: int) -> tuple[int, int]:
    """C and D."""
    length, slots = pairs.shape
    return min(block, length), min(block, slots)


def _places(pairs: Pairs, block: int) -> tuple[jax.Array, ...]:
    """Number of every block of queries, and where the blocks of keys that it meets start and stop."""
    first, last = visits(pairs, block)
    return jnp.arange(len(first)), jnp.asarray(first), jnp.asarray(last)


def _product(einsum: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """In float32: it is added to others."""
    return jnp.einsum(einsum, left, right, preferred_element_type=jnp.float32)


def _zeros(x: jax.Array) -> jax.Array:
    return jnp.zeros(x.shape, jnp.float32)


def _padded(x_BNTH: jax.Array, size: int) -> jax.Array:
    """Zeros behind the last token up to a multiple of `size`."""
    return jnp.pad(x_BNTH, ((0, 0), (0, 0), (0, -x_BNTH.shape[2] % size), (0, 0)))


def _part(x_BNTH: jax.Array, index: jax.Array, size: int) -> jax.Array:
    """Block `index` of `size` tokens."""
    return jax.lax.dynamic_slice_in_dim(x_BNTH, index * size, size, axis=2)


def _added(x_BNTH: jax.Array, index: jax.Array, part: jax.Array) -> jax.Array:
    """`x` with `part` added to its block `index`."""
    size = part.shape[2]
    return jax.lax.dynamic_update_slice_in_dim(x_BNTH, _part(x_BNTH, index, size) + part, index * size, axis=2)


def _joined(blocks: jax.Array) -> jax.Array:
    """[blocks, B, N, C, H] -> [B, N, blocks * C, H]."""
    count, batch, heads, size, features = blocks.shape
    return jnp.moveaxis(blocks, 0, 2).reshape(batch, heads, count * size, features)

"""Blockwise attention: an online softmax over blocks of keys, forward and backward.

Each block of queries iterates over the blocks of keys. Its state is the largest score so far, the sum of the
exponentials and their weighted sum of values (Rabe and Staats 2021, arXiv:2112.05682, section 2). The backward pass
receives the logarithm of the final sum and recomputes the scores of each pair of blocks (Dao et al. 2022,
arXiv:2205.14135, algorithm 4).

Legend: B batch, S keys of a shard, K key/value heads, G query heads per key/value head, N = K * G heads, H head size,
C queries of a block, M = G * C, D keys of a block, R buckets of relative positions.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.layers.attention.pairs import Pairs
from llm_jax.layers.attention.softmax import bias_gradient, fold, fold_mask, fold_sinks, products

_LEAST = jnp.finfo(jnp.float32).min
"""Below every score, yet finite: fully masked queries must not produce infinities or NaNs."""


Numbers = TypeVar("Numbers", np.ndarray, jax.Array)
Bounds = tuple[np.ndarray | jax.Array, np.ndarray | jax.Array]
"""First index, and one past the last."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """A shard of `length` tokens, divided into blocks of at most `limit` tokens; the last block may be shorter."""

    length: int
    limit: int

    @property
    def size(self) -> int:
        """Tokens of a block."""
        return min(self.limit, self.length)

    @property
    def count(self) -> int:
        """Number of blocks."""
        return -(-self.length // self.size)

    def filled(self, x_BNTH: jax.Array) -> jax.Array:
        """`x` padded with zeros to a multiple of the block size."""
        return jnp.pad(x_BNTH, ((0, 0), (0, 0), (0, self.count * self.size - self.length), (0, 0)))

    def part(self, x_BNTH: jax.Array, index: jax.Array) -> jax.Array:
        """Block `index` of a padded array."""
        return jax.lax.dynamic_slice_in_dim(x_BNTH, index * self.size, self.size, axis=2)

    def added(self, x_BNTH: jax.Array, index: jax.Array, part: jax.Array) -> jax.Array:
        """`x` with `part` added to its block `index`."""
        return jax.lax.dynamic_update_slice_in_dim(x_BNTH, self.part(x_BNTH, index) + part, index * self.size, axis=2)

    def indices(self, start: jax.Array | int, index: jax.Array, row: int) -> jax.Array:
        """Indices, within a sequence of `row` tokens, of the tokens of block `index` of a shard that begins at `start`.
        Padding has the index `row`, one past the end."""
        offsets = index * self.size + jnp.arange(self.size)
        return jnp.where(offsets < self.length, start + offsets, row)

    def bounds(self, start: Numbers, stop: Numbers) -> tuple[Numbers, Numbers]:
        """The blocks that hold tokens `start` to `stop` of the shard: the first, and one past the last."""
        return (start // self.size).clip(0, self.count), (-(-stop // self.size)).clip(0, self.count)


def key_range(pairs: Pairs, cut: Cut, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The range of keys that the mask can allow for each block of queries: first key and one past the last key, int32
    [blocks]. The shard of the queries begins at `start`."""
    starts = range(start, start + cut.length, cut.size)
    found = [pairs.columns(slice(one, min(one + cut.size, start + cut.length))) for one in starts]
    return np.array([part.start for part in found], np.int32), np.array([part.stop for part in found], np.int32)


class Keys(NamedTuple):
    """A shard of keys and values, padded to a multiple of the block size, and the index of its first key."""

    k_BKSH: jax.Array
    v_BKSH: jax.Array
    start: jax.Array | int


class OnlineSoftmax(NamedTuple):
    """State of the online softmax of a block of queries, float32."""

    largest_BKM1: jax.Array
    sum_BKM1: jax.Array
    values_BKMH: jax.Array


class BackwardInputs(NamedTuple):
    """Inputs of the backward pass for a block of queries: the queries, the gradient of their output, the dot product of
    that gradient and the output, and the logarithm of their softmax denominator."""

    q_BKMH: jax.Array
    dy_BKMH: jax.Array
    mean_BKM1: jax.Array
    log_sum_BKM1: jax.Array


class Gradients(NamedTuple):
    """Gradients of a shard of keys and values, and of the bias table, summed over the blocks so far, float32."""

    k_BKSH: jax.Array
    v_BKSH: jax.Array
    bias_RN: jax.Array | None

    @classmethod
    def zeros(cls, keys: Keys, bias_RN: jax.Array | None) -> "Gradients":
        """Gradients before the first block."""
        return cls(*jax.tree.map(zeros, (keys.k_BKSH, keys.v_BKSH, bias_RN)))


def initial_state(q_BKMH: jax.Array, features: int, sink_N: jax.Array | None = None) -> OnlineSoftmax:
    """State before the first block of keys: it holds only the sinks. Values have `features` features."""
    nothing, values = (jnp.zeros((*q_BKMH.shape[:-1], n), jnp.float32) for n in (1, features))
    if sink_N is None:
        return OnlineSoftmax(nothing + _LEAST, nothing, values)
    # A sink is a key before all others: its score is the largest so far, its exponential is 1, and its value is zero.
    # `rows` is M = G * C, so C = M * K / N.
    kv_heads, rows = q_BKMH.shape[1:3]
    return OnlineSoftmax(nothing + fold_sinks(sink_N, rows * kv_heads // len(sink_N), kv_heads), nothing + 1, values)


def sinks_gradient(sink_N: jax.Array | None, mean_BNT1: jax.Array, log_sum_BNT1: jax.Array) -> jax.Array | None:
    """Gradient of the sinks, whose values are zero, [N]. Leading axes of blocks are summed over."""
    if sink_N is None:
        return None
    heads = mean_BNT1.ndim - 3
    # Softmax weight of the sink times (0 - mean), because the gradient of its weight is zero.
    d_BNT1 = -mean_BNT1 * jnp.exp(sink_N[:, None, None] - log_sum_BNT1)
    return jnp.sum(d_BNT1, axis=[axis for axis in range(d_BNT1.ndim) if axis != heads])


def accumulate(
    pairs: Pairs, q_BKMH: jax.Array, rows: jax.Array, keys: Keys, cut: Cut, bounds: Bounds, met: OnlineSoftmax
) -> OnlineSoftmax:
    """The state of the queries at indices `rows` after blocks `bounds[0]` to `bounds[1] - 1` of a shard of keys."""

    def one(index: jax.Array, met: OnlineSoftmax) -> OnlineSoftmax:
        # One step of the online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867): where a block has a larger
        # score, the sums so far are rescaled to it. `largest` is finite, so masked scores of -inf give exp(-inf) = 0,
        # never NaN.
        columns, values = cut.indices(keys.start, index, pairs.shape[1]), cut.part(keys.v_BKSH, index)
        scores, _, _ = tile(pairs, q_BKMH, cut.part(keys.k_BKSH, index), rows, columns)
        largest = jnp.maximum(met.largest_BKM1, jnp.max(scores, axis=-1, keepdims=True))
        exp_BKMS, shrink = jnp.exp(scores - largest), jnp.exp(met.largest_BKM1 - largest)
        total = met.sum_BKM1 * shrink + jnp.sum(exp_BKMS, axis=-1, keepdims=True)
        summed = _product("BKMS,BKSH->BKMH", exp_BKMS.astype(values.dtype), values)
        return OnlineSoftmax(largest, total, met.values_BKMH * shrink + summed)

    return jax.lax.fori_loop(*bounds, one, met)


def attended(met: OnlineSoftmax, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """The output of a block of queries from its final state, and the logarithm of its sum of exponentials."""
    # A fully masked query has met no key: its sums are 0, and 0 / tiny gives 0.
    total = jnp.maximum(met.sum_BKM1, jnp.finfo(jnp.float32).tiny)
    return (met.values_BKMH / total).astype(dtype), met.largest_BKM1 + jnp.log(total)


def accumulate_backward(
    pairs: Pairs,
    asked: BackwardInputs,
    rows: jax.Array,
    keys: Keys,
    cut: Cut,
    bounds: Bounds,
    carry: tuple[Gradients, jax.Array],
) -> tuple[Gradients, jax.Array]:
    """Backward pass of `accumulate`: adds to the gradients of keys, values and bias table, and of the queries
    [B, K, M, H] float32."""

    def one(index: jax.Array, carry: tuple[Gradients, jax.Array]) -> tuple[Gradients, jax.Array]:
        (dk, dv, dtable), dq_BKMH = carry
        k_BKDH, v_BKDH = cut.part(keys.k_BKSH, index), cut.part(keys.v_BKSH, index)
        columns = cut.indices(keys.start, index, pairs.shape[1])
        scores, derivative, to_table = tile(pairs, asked.q_BKMH, k_BKDH, rows, columns)
        # P = exp(S - L), dV = P^T dO, dS = P (dO V^T - D), dQ = dS K, dK = dS^T Q: S are the scores, L is `log_sum` and
        # D, dO . O, is `mean`. `derivative` adds the scale and the slope of the soft cap.
        weights = jnp.exp(scores - asked.log_sum_BKM1)
        dv = cut.added(dv, index, _product("BKMS,BKMH->BKSH", weights.astype(v_BKDH.dtype), asked.dy_BKMH))
        dlogits = weights * (_product("BKMH,BKSH->BKMS", asked.dy_BKMH, v_BKDH) - asked.mean_BKM1)
        dscores = (dlogits * derivative).astype(k_BKDH.dtype)
        dk = cut.added(dk, index, _product("BKMS,BKMH->BKSH", dscores, asked.q_BKMH))
        dtable = jax.tree.map(jnp.add, dtable, to_table(dlogits))
        return Gradients(dk, dv, dtable), dq_BKMH + _product("BKMS,BKSH->BKMH", dscores, k_BKDH)

    return jax.lax.fori_loop(*bounds, one, carry)


def tile(
    pairs: Pairs, q_BKMH: jax.Array, k_BKDH: jax.Array, rows: jax.Array, columns: jax.Array
) -> tuple[jax.Array, jax.Array | float, Callable[[jax.Array], jax.Array | None]]:
    """Scores of the queries at indices `rows` and the keys at `columns`, minus infinity where not allowed, [B, K, M, D]
    float32; their derivative by q k^T; and a function from their gradient to that of the bias table."""
    kv_heads, slots = k_BKDH.shape[1], pairs.shape[1]
    groups = q_BKMH.shape[2] // len(rows)

    def biases(table_RN):
        bias = dataclasses.replace(pairs, bias_RN=table_RN).bias(kv_heads * groups, rows, columns)
        return None if bias is None else fold(bias, kv_heads)

    # The bias is computed block by block, like the scores; `pull` adds up the gradient of a block by buckets of the
    # table.
    bias_BKMS, pull = jax.vjp(biases, pairs.bias_RN)
    scale = q_BKMH.shape[-1] ** -0.5 if pairs.scores.scale is None else pairs.scores.scale
    scores, derivative = products(q_BKMH, k_BKDH, scale, pairs.scores.softcap)
    scores = scores if bias_BKMS is None else scores + bias_BKMS
    # The last block may extend past the keys; those columns are masked.
    allowed = pairs.allowed(rows, columns) & (columns < slots)
    scores = jnp.where(fold_mask(allowed, groups, len(rows), len(columns)), scores, -jnp.inf)
    return scores, derivative, lambda dbias_BKMS: pull(bias_gradient(bias_BKMS, dbias_BKMS))[0]


def mean_under(dy_BNTH: jax.Array, y_BNTH: jax.Array) -> jax.Array:
    """sum_S(weights * dweights), which the gradient of a softmax needs: dy . y (Dao et al. 2022, arXiv:2205.14135,
    B.2), [B, N, T, 1] float32."""
    return jnp.sum(dy_BNTH.astype(jnp.float32) * y_BNTH.astype(jnp.float32), axis=-1, keepdims=True)


def zeros(x: jax.Array) -> jax.Array:
    """A float32 accumulator with the shape of `x`."""
    return jnp.zeros(x.shape, jnp.float32)


def joined(blocks: jax.Array) -> jax.Array:
    """[blocks, B, N, C, H] -> [B, N, blocks * C, H]."""
    count, batch, heads, size, features = blocks.shape
    return jnp.moveaxis(blocks, 0, 2).reshape(batch, heads, count * size, features)


def _product(einsum: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """Einsum with a float32 result, because results are summed over blocks."""
    return jnp.einsum(einsum, left, right, preferred_element_type=jnp.float32)

"""Products that contract the rows of both operands, for the gradients of matrices, keys and values.

Legend: R rows, D features of one operand, F of the other.
"""

import functools

import jax
import jax.numpy as jnp

from llm_jax.sharding.platforms import by_platform

_COLLISION = 2048
"""Bytes. The number of sets of a CPU cache is a power of two. If the row stride is a multiple of this, the elements of
a column map to one or two sets and evict each other."""


def over_rows(x_RD: jax.Array, y_RF: jax.Array, precision: str | None = None) -> jax.Array:
    """x^T y, [D, F]."""
    of = functools.partial(_direct, precision)
    cpu = functools.partial(_transposed_first, precision) if _collides(x_RD, y_RF) else of
    return by_platform(x_RD, y_RF, cpu=cpu, default=of)


def over_rows_of_each(x: jax.Array, y: jax.Array) -> jax.Array:
    """x^T y for each index of the leading axes: [..., D, F] from [..., R, D] and [..., R, F]."""
    narrow = x.shape[-1] <= y.shape[-1]
    return by_platform(x, y, cpu=_each if narrow else _each_transposed, default=_each)


def _each(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum("...RD,...RF->...DF", x, y)


def _each_transposed(x: jax.Array, y: jax.Array) -> jax.Array:
    """XLA on CPUs computes many small products up to twice as fast if the rows of the result are longer than its
    columns. Without the factor the compiler fuses the transposition into the product again. With a barrier instead it
    does so late, and its emitter then rejects the layout and aborts the process (jaxlib 0.10)."""
    return jnp.swapaxes(_each(2 * y, x) * 0.5, -1, -2)


def _direct(precision: str | None, x_RD: jax.Array, y_RF: jax.Array) -> jax.Array:
    return jnp.einsum("RD,RF->DF", x_RD, y_RF, precision=precision)


def _transposed_first(precision: str | None, x_RD: jax.Array, y_RF: jax.Array) -> jax.Array:
    """x^T y in two steps; the first transposes the narrower operand. In one step XLA on CPUs calls a routine that reads
    both operands by columns, at about half the speed if they collide."""
    if x_RD.shape[-1] > y_RF.shape[-1]:
        return _transposed_first(precision, y_RF, x_RD).T
    # Without the barriers the compiler fuses the transpositions of operand and result into the product again.
    x_DR = jax.lax.optimization_barrier(x_RD.T)
    return jax.lax.optimization_barrier(jnp.matmul(x_DR, y_RF, precision=precision))


def _collides(x_RD: jax.Array, y_RF: jax.Array) -> bool:
    """Whether the row stride of the wider operand is a multiple of `_COLLISION`."""
    wider = max((x_RD, y_RF), key=lambda array: array.shape[-1])
    return wider.shape[-1] * wider.dtype.itemsize % _COLLISION == 0

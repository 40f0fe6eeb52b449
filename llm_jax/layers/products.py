"""Products that contract the rows of both operands: gradients of a matrix, and of keys and values.

Legend: R rows, D features of one operand, F of the other.
"""

import functools

import jax
import jax.numpy as jnp

_COLLISION = 2048
"""Bytes. Caches have a power of two of sets: the elements of a column whose rows are a multiple of this apart fall into
one or two sets, and evict each other."""


def over_rows(x_RD: jax.Array, y_RF: jax.Array, precision: str | None = None) -> jax.Array:
    """x^T y, [D, F]."""
    of = functools.partial(_direct, precision)
    cpu = functools.partial(_transposed_first, precision) if _collides(x_RD, y_RF) else of
    return jax.lax.platform_dependent(x_RD, y_RF, cpu=cpu, default=of)


def over_rows_of_each(x: jax.Array, y: jax.Array) -> jax.Array:
    """x^T y for each index of the leading axes: [..., D, F] from [..., R, D] and [..., R, F]."""
    narrow = x.shape[-1] <= y.shape[-1]
    return jax.lax.platform_dependent(x, y, cpu=_each if narrow else _each_transposed, default=_each)


def _each(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum("...RD,...RF->...DF", x, y)


def _each_transposed(x: jax.Array, y: jax.Array) -> jax.Array:
    """The compiler for CPUs computes many small products up to twice as fast where the rows of the result are the
    longer ones. Without the factor the compiler makes the transposition part of the product again; behind a barrier it
    does so late, and then its own emitter refuses the layout and ends the process (jaxlib 0.10)."""
    return jnp.swapaxes(_each(2 * y, x) * 0.5, -1, -2)


def _direct(precision: str | None, x_RD: jax.Array, y_RF: jax.Array) -> jax.Array:
    return jnp.einsum("RD,RF->DF", x_RD, y_RF, precision=precision)


def _transposed_first(precision: str | None, x_RD: jax.Array, y_RF: jax.Array) -> jax.Array:
    """In two steps, the first of which transposes the narrower operand. In one step the compiler for CPUs calls a
    routine that reads both operands by columns, at about half the speed where they collide."""
    if x_RD.shape[-1] > y_RF.shape[-1]:
        return _transposed_first(precision, y_RF, x_RD).T
    # Without the barriers the compiler makes the transpositions of operand and result part of the product again.
    x_DR = jax.lax.optimization_barrier(x_RD.T)
    return jax.lax.optimization_barrier(jnp.matmul(x_DR, y_RF, precision=precision))


def _collides(x_RD: jax.Array, y_RF: jax.Array) -> bool:
    """Whether the rows of the wider operand are a multiple of `_COLLISION` apart."""
    wider = max((x_RD, y_RF), key=lambda array: array.shape[-1])
    return wider.shape[-1] * wider.dtype.itemsize % _COLLISION == 0

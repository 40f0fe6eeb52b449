"""Products that contract the rows of both operands: gradients of matrices, and of keys and values.

Legend: R rows, D features of one operand, F of the other.
"""

import functools

import jax
import jax.numpy as jnp

_COLLISION = 2048
"""Bytes. Of rows that are a multiple of so many apart a column meets one or two of the sets of a cache, whose size is a
power of two everywhere, and pushes itself out of it."""


def over_rows(x: jax.Array, y: jax.Array, precision: str | None = None) -> jax.Array:
    """x^T y, [..., D, F], of x [..., R, D] and y [..., R, F]; the leading axes are the same and number the products."""
    of = functools.partial(_direct, precision)
    cpu = functools.partial(_transposed_first, precision) if _collides(x, y) or x.ndim > 2 else of
    return jax.lax.platform_dependent(x, y, cpu=cpu, default=of)


def _direct(precision: str | None, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum("...RD,...RF->...DF", x, y, precision=precision)


def _transposed_first(precision: str | None, x: jax.Array, y: jax.Array) -> jax.Array:
    """In two steps, the first of which transposes the narrower operand. In one the compiler for CPUs takes a routine
    that reads both by columns: in many small products, and where `_collides`, it runs at about half the speed."""
    if x.shape[-1] > y.shape[-1]:
        return jnp.swapaxes(_transposed_first(precision, y, x), -1, -2)
    # Barriers, because a transposed operand or result would be made part of the product again.
    x = jax.lax.optimization_barrier(jnp.swapaxes(x, -1, -2))
    return jax.lax.optimization_barrier(jnp.matmul(x, y, precision=precision))


def _collides(x: jax.Array, y: jax.Array) -> bool:
    """Whether the rows of y, or those of x if they are wider, are a multiple of `_COLLISION` apart."""
    of_x, of_y = (array.shape[-1] * array.dtype.itemsize for array in (x, y))
    return of_y % _COLLISION == 0 or (of_x > of_y and of_x % _COLLISION == 0)

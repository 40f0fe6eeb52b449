"""A product of each row with the matrix of its group, where groups are of any sizes.

TPUs and GPUs have `jax.lax.ragged_dot`. On CPUs that multiplies every row with every matrix; there the rows of a group
are multiplied in blocks.

Legend: P rows, E groups, D input features, F output features, R rows of a block.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

BLOCK = 128
"""Rows of a block: with fewer a product of float32 is slower, with more the last block of a group computes more rows
that belong to the next."""


@jax.custom_vjp
def grouped(rows_PD: jax.Array, kernel_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """rows @ kernel of their group, [P, F] in the type of the rows.

    Args:
      rows_PD: those of the first group, then those of the second, and so on.
      sizes_E: int32, how many of each group, none or all; rows that are left over give 0.
    """
    return _by_platform(_ragged, _blocked, rows_PD, kernel_EDF, sizes_E)


def _forward(rows_PD, kernel_EDF, sizes_E):
    return grouped(rows_PD, kernel_EDF, sizes_E), (rows_PD, kernel_EDF, sizes_E)


def _backward(operands, dy_PF):
    return (*_by_platform(_ragged_gradients, _blocked_gradients, *operands, dy_PF), None)


grouped.defvjp(_forward, _backward)


def _by_platform(ragged: Callable, blocked: Callable, *operands: jax.Array) -> Any:
    return lax.platform_dependent(*operands, cpu=blocked, default=ragged)


def _ragged(rows_PD, kernel_EDF, sizes_E):
    y_PF = lax.ragged_dot(rows_PD, kernel_EDF, sizes_E, preferred_element_type=rows_PD.dtype)
    return jnp.where(_taken(len(rows_PD), sizes_E)[:, None], y_PF, 0)


def _ragged_gradients(rows_PD, kernel_EDF, sizes_E, dy_PF):
    taken_P1 = _taken(len(rows_PD), sizes_E)[:, None]
    product = functools.partial(lax.ragged_dot, group_sizes=sizes_E, preferred_element_type=rows_PD.dtype)
    drows_PD, dkernel_EDF = jax.vjp(product, rows_PD, kernel_EDF)[1](jnp.where(taken_P1, dy_PF, 0))
    return jnp.where(taken_P1, drows_PD, 0), dkernel_EDF


def _taken(rows: int, sizes_E: jax.Array) -> jax.Array:
    """Which of so many rows belong to a group, [P]."""
    return jnp.arange(rows) < jnp.sum(sizes_E)


def _blocked(rows_PD: jax.Array, kernel_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    ends_E = jnp.cumsum(sizes_E)

    def group(e: jax.Array, y_PF: jax.Array) -> jax.Array:
        # Cut out once for all blocks of the group.
        kernel_DF = kernel_EDF[e]

        def block(at: jax.Array, mine_R: jax.Array, y_PF: jax.Array) -> jax.Array:
            before_RF = lax.dynamic_slice_in_dim(y_PF, at, len(mine_R))
            y_RF = lax.dynamic_slice_in_dim(rows_PD, at, len(mine_R)) @ kernel_DF
            return lax.dynamic_update_slice_in_dim(y_PF, jnp.where(mine_R[:, None], y_RF, before_RF), at, 0)

        return _blocks(block, len(rows_PD), ends_E[e] - sizes_E[e], ends_E[e], y_PF)

    y_PF = jnp.zeros((len(rows_PD), kernel_EDF.shape[2]), rows_PD.dtype)
    return lax.fori_loop(0, len(sizes_E), group, y_PF)


def _blocked_gradients(rows_PD, kernel_EDF, sizes_E, dy_PF):
    ends_E = jnp.cumsum(sizes_E)

    def of_kernel(e: jax.Array) -> jax.Array:
        def block(at: jax.Array, mine_R: jax.Array, sum_DF: jax.Array) -> jax.Array:
            rows_RD = lax.dynamic_slice_in_dim(rows_PD, at, len(mine_R))
            dy_RF = jnp.where(mine_R[:, None], lax.dynamic_slice_in_dim(dy_PF, at, len(mine_R)), 0)
            return sum_DF + jnp.einsum("RD,RF->DF", rows_RD, dy_RF, preferred_element_type=jnp.float32)

        zeros_DF = jnp.zeros(kernel_EDF.shape[1:], jnp.float32)
        return _blocks(block, len(rows_PD), ends_E[e] - sizes_E[e], ends_E[e], zeros_DF).astype(kernel_EDF.dtype)

    drows_PD = _blocked(dy_PF, kernel_EDF.swapaxes(1, 2), sizes_E)
    return drows_PD, lax.map(of_kernel, jnp.arange(len(sizes_E)))


def _blocks(block: Callable, rows: int, start: jax.Array, end: jax.Array, carry: jax.Array) -> jax.Array:
    """Folds `block` over the rows of a group, which lie from `start` to before `end` among so many rows.

    Args:
      block: (first row, which of the rows from there are to be computed, carry) -> carry.
    """
    size = min(BLOCK, rows)

    def one(index: jax.Array, carry: jax.Array) -> jax.Array:
        first = start + index * size
        # The last block would end past the last row: it begins earlier.
        at = jnp.minimum(first, rows - size)
        places_R = at + jnp.arange(size)
        return block(at, (places_R >= first) & (places_R < end), carry)

    return lax.fori_loop(0, (end - start + size - 1) // size, one, carry)

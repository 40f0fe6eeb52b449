"""Grouped matrix products: each row times the matrices of its group, with groups of any sizes.

TPUs and GPUs use `jax.lax.ragged_dot`. On CPUs ragged_dot multiplies every row with every matrix; there the rows of a
group are multiplied in blocks instead.

Legend: P rows, E groups, D input features, F output features, R rows of a block.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from llm_jax.sharding.platforms import by_platform

BLOCKS = (256, 64)
"""Block sizes in rows, the largest first. Products of few rows are slow; with large blocks the last block of a group
computes many rows of other groups."""

Arrays = tuple[jax.Array, ...]


@jax.custom_vjp
def grouped(rows_PD: jax.Array, kernels: Arrays, sizes_E: jax.Array) -> Arrays:
    """rows @ kernel of their group for each of the kernels, [P, F] in the dtype of the rows.

    Args:
      rows_PD: rows sorted by group.
      kernels: [E, D, F], of any F.
      sizes_E: int32, number of rows of each group, which may be 0. Rows after the last group give 0; they must be
        finite.
    """
    return by_platform(rows_PD, kernels, sizes_E, cpu=_blocked, default=_ragged)


def _forward(rows_PD: jax.Array, kernels: Arrays, sizes_E: jax.Array) -> tuple[Arrays, tuple]:
    return grouped(rows_PD, kernels, sizes_E), (rows_PD, kernels, sizes_E)


def _backward(operands: tuple, dys: Arrays) -> tuple[jax.Array, Arrays, None]:
    return (*by_platform(*operands, dys, cpu=_blocked_gradients, default=_ragged_gradients), None)


grouped.defvjp(_forward, _backward)


def _ragged(rows_PD: jax.Array, kernels: Arrays, sizes_E: jax.Array) -> Arrays:
    # The results of ragged_dot for rows after the last group differ between platforms.
    taken_P1 = _taken(len(rows_PD), sizes_E)
    products = (lax.ragged_dot(rows_PD, kernel, sizes_E, preferred_element_type=rows_PD.dtype) for kernel in kernels)
    return tuple(jnp.where(taken_P1, y_PF, 0) for y_PF in products)


def _ragged_gradients(rows_PD: jax.Array, kernels: Arrays, sizes_E: jax.Array, dys: Arrays) -> tuple[jax.Array, Arrays]:
    taken_P1 = _taken(len(rows_PD), sizes_E)

    def products(rows_PD: jax.Array, kernels: Arrays) -> Arrays:
        # Masked here as well, so that rows after the last group get no gradient.
        return _ragged(jnp.where(taken_P1, rows_PD, 0), kernels, sizes_E)

    return jax.vjp(products, rows_PD, kernels)[1](dys)


def _taken(rows: int, sizes_E: jax.Array) -> jax.Array:
    """Which of `rows` rows belong to a group, bool [P, 1]."""
    return jnp.arange(rows)[:, None] < jnp.sum(sizes_E)


def _blocked(rows_PD: jax.Array, kernels: Arrays, sizes_E: jax.Array) -> Arrays:
    def group(e: jax.Array, ys: Arrays) -> Arrays:
        # One wide product for all kernels of the group, such as gate and up.
        own_DF = _joined(kernel_EDF[e] for kernel_EDF in kernels)

        def block(at: jax.Array, mine_R1: jax.Array, ys: Arrays) -> Arrays:
            parts = _parted(_cut(rows_PD, at, mine_R1) @ own_DF, kernels)
            return tuple(_put(y_PF, y_RF, at, mine_R1) for y_PF, y_RF in zip(ys, parts, strict=True))

        return _over_blocks(block, len(rows_PD), e, sizes_E, ys)

    ys = tuple(jnp.zeros((len(rows_PD), kernel_EDF.shape[2]), rows_PD.dtype) for kernel_EDF in kernels)
    return _over_groups(group, sizes_E, ys)


def _blocked_gradients(
    rows_PD: jax.Array, kernels: Arrays, sizes_E: jax.Array, dys: Arrays
) -> tuple[jax.Array, Arrays]:
    def group(e: jax.Array, found: tuple[jax.Array, Arrays]) -> tuple[jax.Array, Arrays]:
        own_DF = _joined(kernel_EDF[e] for kernel_EDF in kernels)

        def block(at: jax.Array, mine_R1: jax.Array, found: tuple[jax.Array, Arrays]) -> tuple[jax.Array, Arrays]:
            drows_PD, sums = found
            dy_RF = jnp.where(mine_R1, _joined(_cut(dy_PF, at, mine_R1) for dy_PF in dys), 0)
            # dy kernel^T for the rows; rows^T dy for the kernel, of which this block is one term.
            drows_RD = jnp.einsum("RF,DF->RD", dy_RF, own_DF)
            rows_RD = _cut(rows_PD, at, mine_R1)
            parts = _parted(jnp.einsum("RD,RF->DF", rows_RD, dy_RF, preferred_element_type=jnp.float32), kernels)
            sums = tuple(
                lax.dynamic_update_index_in_dim(sum_EDF, sum_EDF[e] + part_DF, e, 0)
                for sum_EDF, part_DF in zip(sums, parts, strict=True)
            )
            return _put(drows_PD, drows_RD, at, mine_R1), sums

        return _over_blocks(block, len(rows_PD), e, sizes_E, found)

    # float32: the gradient of a kernel is summed over the blocks of its group.
    empty = jnp.zeros_like(rows_PD), tuple(jnp.zeros(kernel_EDF.shape, jnp.float32) for kernel_EDF in kernels)
    drows_PD, sums = _over_groups(group, sizes_E, empty)
    return drows_PD, tuple(sum_EDF.astype(kernel.dtype) for sum_EDF, kernel in zip(sums, kernels, strict=True))


def _joined(parts: Iterable[jax.Array]) -> jax.Array:
    """Matrices concatenated along their columns: one wide product is faster than several narrow ones."""
    return jnp.concatenate(list(parts), axis=1)


def _parted(x: jax.Array, kernels: Arrays) -> list[jax.Array]:
    """The inverse of `_joined`: x split into columns as wide as the kernels."""
    return jnp.split(x, list(itertools.accumulate(kernel.shape[2] for kernel in kernels))[:-1], axis=1)


def _over_groups(group: Callable, sizes_E: jax.Array, carry: Any) -> Any:
    """Folds `group`, (index, carry) -> carry, over the groups that have rows. In autoregressive decoding most groups
    are empty, and their kernels are not read."""
    present_E = jnp.argsort(sizes_E == 0, stable=True)
    return lax.fori_loop(0, jnp.sum(sizes_E > 0), lambda index, carry: group(present_E[index], carry), carry)


def _over_blocks(block: Callable, rows: int, e: jax.Array, sizes_E: jax.Array, carry: Any) -> Any:
    """Folds `block` over the rows of group `e` among all `rows` rows.

    Args:
      block: (first row, which of the R rows from there belong to the block [R, 1], carry) -> carry.
    """
    end = jnp.cumsum(sizes_E)[e]
    at = end - sizes_E[e]
    for number, size in enumerate(BLOCKS, 1):
        size = min(size, rows)
        # A block that is more than half full is computed whole; fewer rows are left to smaller blocks.
        spare = size - 1 if number == len(BLOCKS) else max(size // 2 - 1, 0)
        count = (end - at + spare) // size

        def one(index: jax.Array, carry: Any, start: jax.Array = at, size: int = size) -> Any:
            first = start + index * size
            # A block that would end past the last row begins earlier; `mine` excludes the rows before its own.
            at = jnp.minimum(first, rows - size)
            places_R1 = at + jnp.arange(size)[:, None]
            return block(at, (places_R1 >= first) & (places_R1 < end), carry)

        carry = lax.fori_loop(0, count, one, carry)
        at = jnp.minimum(at + count * size, end)
    return carry


def _cut(x: jax.Array, at: jax.Array, mine_R1: jax.Array) -> jax.Array:
    """The rows of a block."""
    return lax.dynamic_slice_in_dim(x, at, len(mine_R1))


def _put(x: jax.Array, block: jax.Array, at: jax.Array, mine_R1: jax.Array) -> jax.Array:
    """`x` with its own rows of the block written into it."""
    return lax.dynamic_update_slice_in_dim(x, jnp.where(mine_R1, block, _cut(x, at, mine_R1)), at, 0)

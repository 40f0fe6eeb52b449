"""Products of groups of rows against a loop over the groups.

Legend: P rows, E groups, D input features, F output features.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layers.ffn import grouped as module
from llm_jax.layers.ffn.grouped import grouped

P, E, D = 600, 4, 5
FEATURES = (7, 3)
SIZES = {
    "none left over": (130, 70, 0, 400),
    "some left over": (1, 63, 257, 65),
    "all in the first": (600, 0, 0, 0),
    "all in the last": (0, 0, 0, 600),
    "blocks that are full": (256, 64, 256, 24),
    "none at all": (0, 0, 0, 0),
}


def _operands(dtype: str = "float32", rows: int = P):
    generator = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(generator.normal(size=shape), dtype)  # noqa: E731
    kernels = tuple(draw(E, D, features) for features in FEATURES)
    return draw(rows, D), kernels, tuple(draw(rows, features) for features in FEATURES)


def _expected(rows_PD, kernels, sizes, dys):
    """Products and gradients of one group after the other, in float64."""
    rows_PD, kernels, dys = jax.tree.map(lambda x: np.asarray(x, np.float64), (rows_PD, kernels, dys))
    ys = tuple(np.zeros((len(rows_PD), kernel.shape[2])) for kernel in kernels)
    drows_PD, dkernels = np.zeros_like(rows_PD), tuple(np.zeros_like(kernel) for kernel in kernels)
    start = 0
    for e, size in enumerate(sizes):
        own = slice(start, start + size)
        for y, kernel, dy, dkernel in zip(ys, kernels, dys, dkernels, strict=True):
            y[own] = rows_PD[own] @ kernel[e]
            drows_PD[own] += dy[own] @ kernel[e].T
            dkernel[e] = rows_PD[own].T @ dy[own]
        start += size
    return ys, (drows_PD, dkernels)


@jax.jit
def _found(rows_PD, kernels, sizes_E, dys):
    ys, pull = jax.vjp(lambda rows, kernels: grouped(rows, kernels, sizes_E), rows_PD, kernels)
    return ys, pull(dys)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_products_and_gradients_are_those_of_each_group(sizes):
    rows_PD, kernels, dys = _operands()
    found = _found(rows_PD, kernels, jnp.asarray(sizes), dys)
    expected = _expected(rows_PD, kernels, sizes, dys)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.parametrize("rows", [1, 40])
def test_fewer_rows_than_a_block_will_do(rows):
    rows_PD, kernels, dys = _operands(rows=rows)
    sizes = (0, 1, 0, rows - 1)
    found = _found(rows_PD, kernels, jnp.asarray(sizes), dys)
    expected = _expected(rows_PD, kernels, sizes, dys)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.parametrize("rows", [1, 2, 3, 40, 64, 65, 100, 300, 600])
def test_no_more_blocks_than_rows_need(rows):
    """One for the rows of a token, none for a group without any."""
    sizes = np.bincount(np.random.default_rng(rows).integers(0, 3, rows), minlength=4)

    @jax.jit
    def counted(e, sizes_E):
        add = lambda _, mine_R1, carry: (carry[0] + 1, carry[1] + jnp.sum(mine_R1))  # noqa: E731
        return module._over_blocks(add, rows, e, sizes_E, (0, 0))

    for e, size in enumerate(sizes):
        blocks, computed = counted(e, jnp.asarray(sizes, jnp.int32))
        assert computed == size
        assert blocks <= -(-size // min(rows, module.BLOCKS[-1]))


def test_groups_without_rows_are_not_looked_at():
    visited = jax.jit(lambda sizes_E: module._over_groups(lambda e, seen_E: seen_E.at[e].add(1), sizes_E, jnp.zeros(5)))
    np.testing.assert_array_equal(visited(jnp.asarray([0, 3, 0, 1, 0])), [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(visited(jnp.zeros(5, jnp.int32)), np.zeros(5))


def test_rows_left_over_neither_count_nor_spread():
    rows_PD, kernels, dys = _operands()
    sizes_E = jnp.asarray(SIZES["some left over"])
    taken = sum(SIZES["some left over"])
    clean = _found(rows_PD.at[taken:].set(0), kernels, sizes_E, dys)
    dirty = _found(rows_PD.at[taken:].set(1e3), kernels, sizes_E, tuple(dy.at[taken:].set(1e3) for dy in dys))
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)


def test_products_of_bfloat16_are_added_up_in_float32():
    rows_PD, kernels, dys = _operands("bfloat16")
    # A sum of 600 ones in bfloat16 would stay at 256.
    rows_PD, dys = jnp.ones_like(rows_PD), tuple(jnp.ones_like(dy) for dy in dys)
    (y, _), (drows_PD, (dkernel, _)) = _found(rows_PD, kernels, jnp.asarray(SIZES["all in the first"]), dys)
    assert y.dtype == drows_PD.dtype == dkernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(dkernel[0], np.float32), np.float32(jnp.bfloat16(600)))


@pytest.mark.parametrize("sizes", [SIZES["some left over"], SIZES["all in the last"]])
def test_what_accelerators_compute_is_the_same(sizes):
    rows_PD, kernels, dys = _operands()
    sizes_E = jnp.asarray(sizes)
    ys, (drows_PD, dkernels) = _expected(rows_PD, kernels, sizes, dys)
    found = (
        jax.jit(module._ragged)(rows_PD, kernels, sizes_E),
        jax.jit(module._ragged_gradients)(rows_PD, kernels, sizes_E, dys),
    )
    expected = ys, (drows_PD, dkernels)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)

"""Products that contract the rows of both operands."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layers.linear import contract
from llm_jax.layers.products import over_rows
from tests.helpers.platforms import formulated_for

SHAPES = [((6, 3), (6, 512)), ((6, 512), (6, 3)), ((6, 512), (6, 512)), ((6, 3), (6, 5))]


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_it_is_the_einsum(left, right, platform):
    x, y = (np.random.default_rng(seed).normal(size=shape) for seed, shape in enumerate((left, right)))
    with formulated_for(platform):
        product = over_rows(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(product, np.einsum("rd,rf->df", x, y), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_elsewhere_it_is_one_product_and_nothing_else(left, right):
    traced = jax.jit(over_rows).trace(jnp.ones(left), jnp.ones(right))
    for platform in ("cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert (text.count("dot_general"), text.count("optimization_barrier")) == (1, 0)


def _contracting_rows_of_both(function, *arguments):
    """How many products of the compiled program contract the first axis of both of their matrices."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return len(re.findall(r"lhs_contracting_dims=\{([02])\}.*rhs_contracting_dims=\{\1\}", text))


@pytest.mark.parametrize(("width", "hidden", "direct"), [(16, 512, 0), (512, 16, 0), (512, 512, 0), (16, 24, 1)])
@pytest.mark.parametrize("tied", [False, True])
def test_where_rows_collide_in_caches_a_cpu_reads_neither_operand_by_columns(width, hidden, direct, tied):
    """A table that is also the head is read transposed, and so is its gradient: that must not undo it."""

    def loss(kernel, x):
        return jnp.sum(jnp.square(contract("BTD,DF->BTF", x, kernel.T if tied else kernel)))

    shape = (hidden, width) if tied else (width, hidden)
    assert _contracting_rows_of_both(jax.grad(loss), jnp.ones(shape), jnp.ones((2, 4, width))) == direct

"""Products that contract the rows of both operands."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layers.linear import contract
from llm_jax.layers.products import over_rows, over_rows_of_each
from llm_jax.sharding.platforms import tracing_for

SHAPES = [((6, 3), (6, 512)), ((6, 512), (6, 3)), ((6, 512), (6, 512)), ((6, 3), (6, 5))]


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_it_is_the_einsum(left, right, platform):
    x, y = (np.random.default_rng(seed).normal(size=shape) for seed, shape in enumerate((left, right)))
    with tracing_for(platform):
        product = over_rows(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(product, np.einsum("rd,rf->df", x, y), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_elsewhere_it_is_one_product_and_nothing_else(left, right):
    for platform in ("gpu", "tpu"):
        with tracing_for(platform):
            text = str(jax.make_jaxpr(lambda x, y: over_rows(x, y))(jnp.ones(left), jnp.ones(right)))
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


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(("features", "others"), [(5, 3), (3, 5), (4, 4)])
def test_of_each_it_is_the_einsum_and_so_are_its_derivatives(features, others, platform):
    x, y, t = (
        jnp.asarray(np.random.default_rng(seed).normal(size=(2, 3, *shape)), jnp.float32)
        for seed, shape in enumerate([(6, features), (6, others), (features, others)])
    )

    def einsum(x, y):
        return jnp.einsum("...rd,...rf->...df", x, y)

    def twice(product):
        return jax.grad(lambda x, y: jnp.sum(jnp.square(jax.grad(lambda y: jnp.sum(t * product(x, y)))(y))), 0)

    with tracing_for(platform):
        results = [over_rows_of_each(x, y), jax.jvp(over_rows_of_each, (x, y), (x, y)), twice(over_rows_of_each)(x, y)]
    expected = [einsum(x, y), jax.jvp(einsum, (x, y), (x, y)), twice(einsum)(x, y)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), results, expected)


@pytest.mark.parametrize("consumer", [lambda x: x, lambda x: x.swapaxes(1, 2), jnp.sin])
def test_rows_of_small_products_are_the_longer_ones_on_a_cpu(consumer):
    """Whatever reads the result: the compiler neither makes the transposition part of the product nor fails."""
    text = jax.jit(lambda x, y: consumer(over_rows_of_each(x, y)))
    text = text.lower(jnp.ones((2, 3, 6, 128)), jnp.ones((2, 3, 6, 32))).compile().as_text()
    assert re.findall(r"f32\[([\d,]+)\]\S* dot\(", text) == ["2,3,32,128"]

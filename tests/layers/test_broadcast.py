"""What many tokens read is given a gradient that is the sum over them, whatever the compute type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layers.broadcast import broadcast, look_up

TOKENS = 16384
GENERATOR = np.random.default_rng(0)


def summed(read, x, dy) -> np.ndarray:
    """The gradient that `x` is given where what is read of it is given dy."""
    return np.asarray(jax.jit(lambda x, dy: jax.vjp(read, x)[1](dy)[0])(x, dy), np.float64)


def cotangent(*shape: int) -> jax.Array:
    """bfloat16, of which every feature has one sign in nine of ten tokens: a bfloat16 sum loses most of it."""
    return jnp.asarray(GENERATOR.normal(1.3, 1.0, shape), jnp.bfloat16)


@pytest.mark.parametrize(
    ("own", "shape"), [((8,), (64, 256, 8)), ((4, 1, 2), (64, 4, 256, 2)), ((), (64, 256)), ((4, 8), (4, 8))]
)
def test_the_gradient_of_a_vector_is_the_sum_over_what_reads_it(own, shape):
    x, dy = jnp.asarray(GENERATOR.normal(size=own), jnp.float32), cotangent(*shape)
    read = lambda x: broadcast(x, shape, jnp.bfloat16)  # noqa: E731
    np.testing.assert_array_equal(read(x), np.broadcast_to(x.astype(jnp.bfloat16), shape))
    exact = jax.vjp(lambda x: jnp.broadcast_to(x, shape), x)[1](dy.astype(jnp.float32))[0]
    np.testing.assert_allclose(summed(read, x, dy), exact, rtol=1e-5)


def test_the_gradient_of_a_table_is_the_sum_over_what_reads_each_row():
    # By Zipf's law the first row is read two thousand times and the last one twenty times.
    odds = 1 / np.arange(1, 101)
    rows = GENERATOR.choice(100, (64, 256), p=odds / odds.sum())
    table, dy = jnp.asarray(GENERATOR.normal(size=(100, 8)), jnp.float32), cotangent(64, 256, 8)
    exact = np.zeros((100, 8))
    np.add.at(exact, rows, np.asarray(dy, np.float64))
    read = lambda table: look_up(table, rows, jnp.bfloat16)  # noqa: E731
    np.testing.assert_array_equal(read(table), table.astype(jnp.bfloat16)[rows])
    np.testing.assert_allclose(summed(read, table, dy), exact, rtol=1e-5)


def test_gradients_are_of_the_type_of_what_is_read():
    for dtype in (jnp.float32, jnp.bfloat16):
        x, table = jnp.ones(4, dtype), jnp.ones((3, 4), dtype)
        one = jax.grad(lambda x: jnp.sum(broadcast(x, (2, 4), jnp.bfloat16)))(x)
        other = jax.grad(lambda x: jnp.sum(look_up(x, jnp.array([0, 2]), jnp.bfloat16)))(table)
        assert one.dtype == other.dtype == dtype

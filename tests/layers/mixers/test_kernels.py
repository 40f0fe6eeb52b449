"""The attention seam."""

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.layers.mixers.kernels import PlainKernel

GENERATOR = np.random.default_rng(0)


def _arrays(heads, kv_heads, queries=3, keys=5, dtype=jnp.float32):
    shapes = ((2, heads, queries, 4), (2, kv_heads, keys, 4), (2, kv_heads, keys, 4))
    return tuple(jnp.asarray(GENERATOR.normal(size=shape), dtype) for shape in shapes)


def test_query_heads_share_keys_in_consecutive_groups():
    q, k, v = _arrays(6, 2)
    allowed = jnp.asarray(GENERATOR.random((2, 3, 5)) < 0.7).at[..., 0].set(True)
    grouped = PlainKernel().attend(q, k, v, allowed)
    repeated = PlainKernel().attend(q, jnp.repeat(k, 3, axis=1), jnp.repeat(v, 3, axis=1), allowed)
    np.testing.assert_allclose(grouped, repeated, rtol=1e-5, atol=1e-6)
    other = PlainKernel().attend(q, jnp.tile(k, (1, 3, 1, 1)), jnp.tile(v, (1, 3, 1, 1)), allowed)
    assert not np.allclose(grouped, other, atol=1e-2)


def test_keys_that_are_not_allowed_have_no_influence_at_all():
    q, k, v = _arrays(2, 2)
    allowed = jnp.asarray([[[True, True, False, True, False]]])
    y = PlainKernel().attend(q, k, v, allowed)
    hidden = ~allowed[0, 0][None, None, :, None]
    changed = PlainKernel().attend(q, jnp.where(hidden, 1e4, k), jnp.where(hidden, -1e4, v), allowed)
    np.testing.assert_array_equal(y, changed)


def test_a_query_that_sees_nothing_averages_and_has_finite_gradients():
    q, k, v = _arrays(2, 2)
    nothing = jnp.zeros((1, 1, 1), bool)
    y, gradients = jax.value_and_grad(lambda *x: PlainKernel().attend(*x, nothing).sum(), (0, 1, 2))(q, k, v)
    np.testing.assert_allclose(y, 3 * v.mean(axis=2).sum(), rtol=1e-4)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_result_has_the_type_and_shape_of_the_queries():
    q, k, v = _arrays(4, 2, dtype=jnp.bfloat16)
    y = PlainKernel().attend(q, k, v, jnp.ones((1, 1, 1), bool))
    assert y.dtype == jnp.bfloat16 and y.shape == q.shape

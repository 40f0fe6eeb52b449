"""softmax(q k^T) v of whole arrays: its gradients, its extremes and its number types."""

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.layers.attention.softmax import attend

B, N, K, T, H = 2, 4, 2, 7, 4
GENERATOR = np.random.default_rng(0)
Q, KEYS, VALUES = (jnp.asarray(GENERATOR.normal(size=(B, heads, T, H)), jnp.float32) for heads in (N, K, K))


def _value_and_gradients(function, cotangent):
    """y and its pull-back of `cotangent`."""

    @jax.jit
    def both(cotangent):
        y, pull = jax.vjp(function, Q, KEYS, VALUES)
        return y, pull(cotangent)

    return both(cotangent)


def test_a_bias_learns():
    bias = jnp.asarray(GENERATOR.normal(size=(1, N, T, T)), jnp.float32)
    allowed = jnp.asarray(np.tril(np.ones((1, T, T), bool)))

    def reference(bias):
        k, v = (jnp.repeat(x, N // K, axis=1) for x in (KEYS, VALUES))
        raw = jnp.einsum("BNTH,BNSH->BNTS", Q, k) / np.sqrt(H) + bias
        weights = jax.nn.softmax(jnp.where(allowed[:, None], raw, -jnp.inf), axis=-1)
        return jnp.sum(jnp.sin(jnp.einsum("BNTS,BNSH->BNTH", weights, v)))

    ours = lambda bias: jnp.sum(jnp.sin(attend(Q, KEYS, VALUES, allowed, bias)))  # noqa: E731
    actual, expected = jax.jit(lambda bias: [jax.grad(loss)(bias) for loss in (ours, reference)])(bias)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5)


def test_query_heads_share_keys_in_consecutive_groups():
    allowed = jnp.ones((1, 1, 1), bool)
    grouped = attend(Q, KEYS, VALUES, allowed)
    other = attend(Q, *(jnp.tile(x, (1, N // K, 1, 1)) for x in (KEYS, VALUES)), allowed)
    np.testing.assert_allclose(grouped[:, :2], attend(Q[:, :2], KEYS[:, :1], VALUES[:, :1], allowed), rtol=1e-5)
    assert not np.allclose(grouped, other, atol=1e-2)


def test_keys_that_are_not_allowed_have_no_influence_at_all():
    allowed = jnp.asarray([[[True, True, False, True, False, True, True]]])
    hidden = ~allowed[0, 0][None, None, :, None]
    y = attend(Q, KEYS, VALUES, allowed)
    changed = attend(Q, jnp.where(hidden, 1e4, KEYS), jnp.where(hidden, -1e4, VALUES), allowed)
    np.testing.assert_array_equal(y, changed)


def test_a_query_that_sees_nothing_averages_and_has_finite_gradients():
    nothing = jnp.zeros((1, 1, 1), bool)
    y, gradients = _value_and_gradients(lambda *x: attend(*x, nothing), jnp.ones_like(Q))
    np.testing.assert_allclose(y[0, 0], jnp.broadcast_to(VALUES[0, 0].mean(axis=0), (T, H)), rtol=1e-4, atol=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_large_scores_do_not_overflow():
    y, gradients = _value_and_gradients(
        lambda q, k, v: attend(1e4 * q, k, v, jnp.ones((1, 1, 1), bool)), jnp.ones_like(Q)
    )
    assert all(np.isfinite(array).all() for array in (y, *gradients))


def test_bfloat16_stays_bfloat16_and_near_float32():
    low = [x.astype(jnp.bfloat16) for x in (Q, KEYS, VALUES)]
    allowed = jnp.ones((1, 1, 1), bool)

    @jax.jit
    def all_of(*arrays):
        y, pull = jax.vjp(lambda *x: attend(*x, allowed), *arrays)
        return y, *pull(jnp.ones_like(y))

    for actual, expected in zip(all_of(*low), all_of(*(x.astype(jnp.float32) for x in low)), strict=True):
        assert actual.dtype == jnp.bfloat16
        error = np.abs(np.asarray(actual, np.float32) - expected).max()
        assert error < 0.02 * np.abs(expected).max()

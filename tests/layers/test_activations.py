"""Nonlinearities and their own gradient rules, by their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layers.activations import ACTIVATIONS, GATED

X = np.linspace(-4, 4, 40)  # 0, where relu has no derivative, is not among them
UP = np.random.default_rng(0).normal(size=X.shape)


def _erf(x):
    return np.vectorize(math.erf)(x)


FORMULAS = {
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "relu_squared": lambda x: np.maximum(x, 0) ** 2,
    "tanh": np.tanh,
}


def _slope(formula):
    return (formula(X + 1e-5) - formula(X - 1e-5)) / 2e-5


def test_every_name_has_a_formula_here():
    assert set(FORMULAS) == set(ACTIVATIONS) == set(GATED) - {"clamped_swiglu"}


@pytest.mark.parametrize("name", FORMULAS)
def test_name_means_formula_and_its_slope(name):
    value, slope = jax.vmap(jax.value_and_grad(ACTIVATIONS[name]))(jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(value, FORMULAS[name](X), atol=1e-5)
    np.testing.assert_allclose(slope, _slope(FORMULAS[name]), atol=1e-4)


@pytest.mark.parametrize("name", FORMULAS)
def test_gated_is_the_activation_times_the_other_input(name):
    gate, up = jnp.asarray(X, jnp.float32), jnp.asarray(UP, jnp.float32)
    value, slopes = jax.vmap(jax.value_and_grad(GATED[name], (0, 1)))(gate, up)
    np.testing.assert_allclose(value, FORMULAS[name](X) * UP, atol=1e-5)
    np.testing.assert_allclose(slopes[0], _slope(FORMULAS[name]) * UP, atol=1e-4)
    np.testing.assert_allclose(slopes[1], FORMULAS[name](X), atol=1e-5)


def test_clamped_swiglu_is_its_formula_and_flat_beyond_its_limits():
    generator = np.random.default_rng(1)
    gate, up = generator.uniform(-12, 12, (2, 200))

    def formula(gate, up):
        gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
        return gate / (1 + np.exp(-1.702 * gate)) * (up + 1)

    of = lambda gate, up: jax.vmap(jax.value_and_grad(GATED["clamped_swiglu"], (0, 1)))(gate, up)  # noqa: E731
    value, slopes = of(jnp.asarray(gate, jnp.float32), jnp.asarray(up, jnp.float32))
    np.testing.assert_allclose(value, formula(gate, up), rtol=1e-5, atol=1e-5)
    by_gate = (formula(gate + 1e-5, up) - formula(gate - 1e-5, up)) / 2e-5
    by_up = (formula(gate, up + 1e-5) - formula(gate, up - 1e-5)) / 2e-5
    np.testing.assert_allclose(slopes[0], by_gate, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(slopes[1], by_up, rtol=1e-4, atol=1e-4)
    assert not np.asarray(slopes[0])[gate > 7].any() and not np.asarray(slopes[1])[np.abs(up) > 7].any()


@pytest.mark.parametrize("name", FORMULAS)
def test_far_out_nothing_overflows_and_types_stay(name):
    x = jnp.array([-1e4, -50.0, 0.0, 50.0, 1e4])
    for dtype in (jnp.float32, jnp.bfloat16):
        value, pull = jax.vjp(ACTIVATIONS[name], x.astype(dtype))
        (slope,) = pull(jnp.ones_like(value))
        assert value.dtype == slope.dtype == dtype
        far = np.asarray(x.astype(dtype), np.float32)
        values, slopes = (np.sign(far), [0, 0, 0, 0]) if name == "tanh" else (np.maximum(far, 0), [0, 0, 1, 1])
        if name == "relu_squared":
            squares = jnp.asarray(values**2).astype(dtype)
            values, slopes = np.asarray(squares, np.float32), 2 * values[[0, 1, 3, 4]]
        np.testing.assert_allclose(np.asarray(value, np.float32), values, atol=1e-3)
        np.testing.assert_allclose(np.asarray(slope, np.float32)[[0, 1, 3, 4]], slopes, atol=1e-3)

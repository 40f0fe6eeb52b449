"""Norms against numpy in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.dtypes import MIXED, Precision
from llm_jax.layers.norms import LayerNormConfig, OffsetLayerNormConfig, PlainLayerNormConfig, RMSNormConfig

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(2, 3, 8)) * 3 + 2
SCALE, BIAS = GENERATOR.normal(size=(2, 8))


def _layer_norm(x, epsilon):
    return (x - x.mean(-1, keepdims=True)) / (x.var(-1, keepdims=True) + epsilon) ** 0.5


def _rms_norm(x, epsilon):
    return x / ((x**2).mean(-1, keepdims=True) + epsilon) ** 0.5


KINDS = (LayerNormConfig, OffsetLayerNormConfig, PlainLayerNormConfig, RMSNormConfig)

CASES = {
    "layer": (LayerNormConfig(0.1), {"scale": SCALE, "bias": BIAS}, _layer_norm(X, 0.1) * SCALE + BIAS),
    "layer without bias": (LayerNormConfig(0.1, bias=False), {"scale": SCALE}, _layer_norm(X, 0.1) * SCALE),
    "layer from zero": (
        OffsetLayerNormConfig(0.1),
        {"scale": SCALE, "bias": BIAS},
        _layer_norm(X, 0.1) * (1 + SCALE) + BIAS,
    ),
    "layer without parameters": (PlainLayerNormConfig(0.1), {}, _layer_norm(X, 0.1)),
    "rms": (RMSNormConfig(0.1), {"scale": SCALE}, _rms_norm(X, 0.1) * SCALE),
    "rms from zero": (RMSNormConfig(0.1, from_zero=True), {"scale": SCALE}, _rms_norm(X, 0.1) * (1 + SCALE)),
}


@pytest.mark.parametrize("case", CASES)
def test_norm_is_its_formula(case):
    config, params, expected = CASES[case]
    y = config.build(Precision(), None).apply({"params": params}, jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_formula(case):
    config, params, _ = CASES[case]
    formula = _layer_norm if "layer" in case else _rms_norm
    cotangent = jnp.asarray(GENERATOR.normal(size=X.shape), jnp.float32)
    params, x = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (params, X))
    y, pull = jax.vjp(lambda params, x: config.build(Precision(), None).apply({"params": params}, x), params, x)
    by_jax, pull_by_jax = jax.vjp(
        lambda p, x: formula(x, 0.1) * (p.get("scale", 1.0) + ("zero" in case)) + p.get("bias", 0.0), params, x
    )
    np.testing.assert_allclose(y, by_jax, rtol=1e-4, atol=1e-5)
    for actual, expected in zip(*map(jax.tree.leaves, (pull(cotangent), pull_by_jax(cotangent))), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_fresh_norm_changes_nothing_but_scale(case):
    config, params, _ = CASES[case]
    made = config.build(Precision(), None).init(jax.random.key(0), jnp.zeros((1, 8))).get("params", {})
    assert set(made) == set(params)
    assert {name: set(np.asarray(box.value)) for name, box in made.items()} == {
        name: {1.0 if name == "scale" and "zero" not in case else 0.0} for name in params
    }
    assert all(box.names == ("norm",) for box in made.values())
    assert config.parameters(8) == sum(box.value.size for box in made.values())


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_float32_under_bfloat16(kind):
    # Around 300 bfloat16 steps by 2: a mean or a sum of squares taken in it would be far off.
    x = jnp.asarray(300 + 2 * GENERATOR.integers(-3, 4, (4, 512)), jnp.bfloat16)
    norm = kind().build(MIXED, None)
    y = norm.apply(nn.unbox(norm.init(jax.random.key(0), x)), x)
    assert y.dtype == jnp.bfloat16
    reference = _rms_norm if kind is RMSNormConfig else _layer_norm
    expected = reference(np.asarray(x, np.float64), kind().epsilon)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_epsilon_is_positive(kind):
    with pytest.raises(ValueError, match="epsilon is 0"):
        kind(0)

"""Rotary positions: scores know distances only, and the rotation is that of the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.sharding.platforms import tracing_for

GENERATOR = np.random.default_rng(0)


def _complex_reference(x, positions, base):
    """Pairs (i, i + H/2) as complex numbers, turned by exp(i position theta)."""
    half = x.shape[-1] // 2
    theta = base ** (-2.0 * np.arange(half) / x.shape[-1])
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * positions[:, None, :, None] * theta)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def _turned(rope, x, positions, weights):
    """What is rotated, and the gradient of its sum with `weights`."""

    def both(x, weights):
        y, pull = jax.vjp(lambda x: rope.rotate(x, jnp.asarray(positions)), x)
        return y, pull(weights)[0]

    return jax.jit(both)(x, weights)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("base", [10_000.0, 500.0])
@pytest.mark.parametrize("head_dim", [2, 8])
def test_rotation_is_that_of_complex_numbers_and_its_gradient_turns_back(base, head_dim, platform):
    x, weights = GENERATOR.normal(size=(2, 2, 3, 5, head_dim))
    positions = GENERATOR.integers(0, 200, (2, 5))
    with tracing_for(platform):
        y, gradient = _turned(RoPEConfig(base), np.float32(x), positions, np.float32(weights))
    np.testing.assert_allclose(y, _complex_reference(x, positions, base), atol=1e-4)
    np.testing.assert_allclose(gradient, _complex_reference(weights, -positions, base), atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("features", [None, 4])
def test_both_formulations_give_the_same_for_some_of_the_features_too(features, dtype):
    x, weights = GENERATOR.normal(size=(2, 2, 3, 5, 8)).astype(dtype)
    positions = GENERATOR.integers(0, 200, (2, 5))

    def both(platform):
        with tracing_for(platform):
            return np.array(_turned(RoPEConfig(features=features), x, positions, weights), np.float32)

    on_tpus = both("tpu")
    np.testing.assert_allclose(on_tpus, both("cpu"), rtol=1e-6, atol=1e-6 if dtype == "float32" else 0.02)
    if features is not None:
        np.testing.assert_array_equal(on_tpus[0, ..., features:], np.asarray(x, np.float32)[..., features:])


def test_scores_depend_on_distance_only_and_do_depend_on_it():
    q, k = GENERATOR.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

    @jax.jit
    def score(query_at, key_at):
        return jnp.vdot(*(RoPEConfig().rotate(x, jnp.array([[at]])) for x, at in ((q, query_at), (k, key_at))))

    for distance in (0, 1, 7):
        np.testing.assert_allclose([score(at + distance, at) for at in (0, 3, 90)], score(distance, 0), rtol=1e-4)
    scores = [float(score(distance, 0)) for distance in (0, 1, 7, -7)]
    assert min(abs(a - b) for i, a in enumerate(scores) for b in scores[:i]) > 1e-3


def test_position_zero_stands_still_and_lengths_are_kept():
    x, rotate = GENERATOR.normal(size=(1, 2, 3, 8)).astype(np.float32), jax.jit(RoPEConfig().rotate)
    np.testing.assert_array_equal(rotate(x, np.zeros((1, 3), int)), x)
    turned = np.asarray(rotate(x, np.array([[5, 60, 700]])))
    assert not np.allclose(turned, x, atol=0.1)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)


def test_bfloat16_keeps_its_type_and_its_positions_apart():
    # In bfloat16 the positions 256 and 257 would be the same number.
    x = jnp.ones((1, 1, 2, 8), jnp.bfloat16)
    y = jax.jit(RoPEConfig().rotate)(x, np.array([[256, 257]]))
    assert y.dtype == jnp.bfloat16
    assert np.abs(np.asarray(y[0, 0, 0] - y[0, 0, 1], np.float32)).max() > 0.3


def test_base_is_positive():
    with pytest.raises(ValueError, match="base is 0"):
        RoPEConfig(0)

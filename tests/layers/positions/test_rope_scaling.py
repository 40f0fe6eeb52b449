"""Scaled rotations, against the formulas of their papers."""

import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.layers.positions.rope_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    Unscaled,
    YaRNScaling,
)

BASE, FEATURES = 10_000.0, 32
SHORT, LONG = jnp.array([[20]]), jnp.array([[300]])
PLAIN = BASE ** (-np.arange(0, FEATURES, 2) / FEATURES)


def _frequencies(scaling, lengths=SHORT):
    frequencies, magnitude = scaling.frequencies(BASE, FEATURES, lengths)
    return np.squeeze(np.asarray(frequencies)), magnitude


def test_unscaled_and_linear():
    np.testing.assert_allclose(_frequencies(Unscaled())[0], PLAIN, rtol=1e-5)
    np.testing.assert_allclose(_frequencies(LinearScaling(4.0))[0], PLAIN / 4, rtol=1e-5)


def test_dynamic_scaling_starts_beyond_the_original_length():
    scaling = DynamicScaling(2.0, original_length=100)
    np.testing.assert_allclose(_frequencies(scaling, SHORT)[0], PLAIN, rtol=1e-5)
    base = BASE * (2 * 300 / 100 - 1) ** (FEATURES / (FEATURES - 2))
    np.testing.assert_allclose(
        _frequencies(scaling, LONG)[0], base ** (-np.arange(0, FEATURES, 2) / FEATURES), rtol=1e-4
    )


def test_llama3_keeps_the_fast_pairs_and_slows_the_slow_ones():
    scaled, magnitude = _frequencies(Llama3Scaling(8.0, 1.0, 4.0, original_length=256))
    turns = 256 * PLAIN / (2 * np.pi)
    np.testing.assert_allclose(scaled[turns >= 4], PLAIN[turns >= 4], rtol=1e-5)
    np.testing.assert_allclose(scaled[turns <= 1], PLAIN[turns <= 1] / 8, rtol=1e-5)
    between = (turns > 1) & (turns < 4)
    assert between.any() and ((scaled < PLAIN) & (scaled > PLAIN / 8))[between].all()
    assert magnitude == 1


def test_yarn_blends_over_pairs_and_sharpens_scores():
    scaled, magnitude = _frequencies(YaRNScaling(4.0, original_length=256))
    turns = 256 * PLAIN / (2 * np.pi)
    np.testing.assert_allclose(scaled[turns > 32], PLAIN[turns > 32], rtol=1e-5)
    np.testing.assert_allclose(scaled[turns < 0.5], PLAIN[turns < 0.5] / 4, rtol=1e-5)
    share = (1 / scaled - 1 / PLAIN) * PLAIN  # how much slower: 0 where kept, 3 where slowed by 4
    assert (np.diff(share) >= -1e-3).all() and 0 < share[6] < 3
    assert magnitude == pytest.approx(0.1 * np.log(4) + 1)
    assert _frequencies(YaRNScaling(4.0, 256, magnitude=0.7))[1] == 0.7


def test_longrope_has_a_set_of_divisors_for_long_rows():
    short, long = tuple(np.linspace(1, 2, 16)), tuple(np.linspace(2, 9, 16))
    scaling = LongRoPEScaling(short, long, original_length=100, magnitude=1.2)
    np.testing.assert_allclose(_frequencies(scaling, SHORT)[0], PLAIN / short, rtol=1e-5)
    np.testing.assert_allclose(_frequencies(scaling, LONG)[0], PLAIN / long, rtol=1e-5)


@pytest.mark.parametrize(
    "scaling",
    [DynamicScaling(2.0, 100), LongRoPEScaling(tuple(np.linspace(1, 2, 16)), tuple(np.linspace(2, 9, 16)), 100)],
)
def test_each_sequence_is_scaled_by_its_own_length(scaling):
    """Also where sequences of several lengths are in one batch, and documents in one row."""
    lengths = jnp.array([[20, 20, 20], [300, 300, 20], [100, 101, 0]])
    found, _ = scaling.frequencies(BASE, FEATURES, lengths)
    for index in np.ndindex(lengths.shape):
        alone, _ = scaling.frequencies(BASE, FEATURES, lengths[index].reshape(1, 1))
        np.testing.assert_array_equal(found[index], alone[0, 0])
    assert not np.array_equal(found[2, 0], found[2, 1]), "101 tokens are beyond the original length of 100"


def test_a_part_of_a_head_is_rotated_and_the_rest_left():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 5, 12)), jnp.float32)
    positions = jnp.arange(5)[None]
    part = RoPEConfig(features=4).rotate(x, positions)
    np.testing.assert_array_equal(part[..., 4:], x[..., 4:])
    np.testing.assert_allclose(part[..., :4], RoPEConfig().rotate(x[..., :4], positions), rtol=1e-6)


def test_the_magnitude_multiplies_what_is_rotated():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 5, 32)), jnp.float32)
    scaled, plain = (
        RoPEConfig(scaling=YaRNScaling(1.5, 64, magnitude=m)).rotate(x, jnp.arange(5)[None]) for m in (2.0, 1.0)
    )
    np.testing.assert_allclose(scaled, 2 * plain, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearScaling(0.0), "factor is 0"),
        (lambda: DynamicScaling(2.0, 0), "original_length is 0"),
        (lambda: Llama3Scaling(8.0, 4.0, 1.0), "high is 1.0 and low is 4.0"),
        (lambda: YaRNScaling(2.0, 64, fast=1.0, slow=2.0), "fast is 1.0 and slow is 2.0"),
        (lambda: LongRoPEScaling((1.0,), (1.0, 2.0), 64), "short has 1 divisors and long has 2"),
        (lambda: RoPEConfig(features=3), "features is 3"),
    ],
)
def test_bad_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_dynamic_scaling_needs_more_than_one_pair():
    with pytest.raises(ValueError, match="2 features are rotated: dynamic scaling requires at least 4"):
        DynamicScaling(2.0, 64).frequencies(BASE, 2, SHORT)


def test_divisors_must_be_those_of_the_head():
    with pytest.raises(ValueError, match="2 divisors and 32 features"):
        _frequencies(LongRoPEScaling((1.0, 1.0), (2.0, 2.0), 64))

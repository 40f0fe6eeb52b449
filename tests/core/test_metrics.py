"""Sums and counts: however a batch is cut, the mean is that of the whole."""

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core import metrics
from llm_jax.core.metrics import Ratio


def test_mean_is_weighted():
    ratio = Ratio.of(jnp.array([1.0, 2.0, 4.0]), jnp.array([1.0, 0.0, 3.0]))
    np.testing.assert_allclose(ratio.mean, (1 + 3 * 4) / 4)


def test_parts_of_different_weight_add_up_to_the_whole():
    values = np.random.default_rng(0).normal(size=12).astype(np.float32)
    weights = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1], np.float32)
    parts = [Ratio.of(jnp.asarray(v), jnp.asarray(w)) for v, w in zip(values.reshape(3, 4), weights.reshape(3, 4))]  # noqa: B905
    whole = Ratio.of(jnp.asarray(values), jnp.asarray(weights))
    together = parts[0] + parts[1] + parts[2]
    np.testing.assert_allclose(together.mean, np.average(values, weights=weights), rtol=1e-6)
    np.testing.assert_allclose(together.mean, whole.mean, rtol=1e-6)
    mean_of_means = np.mean([part.mean for part in parts])
    assert abs(mean_of_means - whole.mean) > 0.05  # what sums and counts are there to prevent


def test_sums_are_float32_whatever_comes_in():
    # bfloat16 cannot count past 256.
    ratio = Ratio.of(jnp.ones(1000, jnp.bfloat16), jnp.ones(1000, jnp.bfloat16))
    assert ratio.total.dtype == ratio.count.dtype == jnp.float32
    assert float(ratio.total) == float(ratio.count) == 1000
    booleans = Ratio.of(jnp.array([True, False]), jnp.array([True, True]))
    assert float(booleans.mean) == 0.5


def test_nothing_counted_is_zero_not_nan():
    empty = Ratio.of(jnp.ones(3), jnp.zeros(3))
    assert float(empty.mean) == 0.0
    assert metrics.means({"loss": empty}) == {"loss": 0.0}


def test_dictionaries_add_by_key_and_fetch_as_floats():
    one = {"loss": Ratio(jnp.float32(6), jnp.float32(2)), "accuracy": Ratio(jnp.float32(1), jnp.float32(2))}
    two = {"loss": Ratio(jnp.float32(2), jnp.float32(2)), "accuracy": Ratio(jnp.float32(2), jnp.float32(2))}
    result = metrics.means(metrics.add(one, two))
    assert result == {"loss": 2.0, "accuracy": 0.75}
    assert all(type(value) is float for value in result.values())


def test_ratio_is_a_pytree_that_passes_through_jit_and_scan():
    def body(carry, x):
        return metrics.add(carry, {"m": Ratio.of(x, jnp.ones_like(x))}), None

    zero = {"m": Ratio(jnp.zeros(()), jnp.zeros(()))}
    total, _ = jax.jit(lambda xs: jax.lax.scan(body, zero, xs))(jnp.arange(6.0).reshape(3, 2))
    assert metrics.means(total) == {"m": 2.5}

"""Biases of scores are the same whether a row is read whole or through a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layers.attention.masks import Causal
from llm_jax.layers.attention.pairs import Pairs
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.positions.alibi import ALiBiConfig
from llm_jax.layers.positions.relative_bias import RelativeBiasConfig
from llm_jax.layers.sequence import SequenceInfo

N, T = 2, 300
BIASES = {
    "alibi": ALiBiConfig(),
    "t5, encoder": RelativeBiasConfig(bidirectional=True),
    "t5, decoder": RelativeBiasConfig(),
    # Distance 80 is the first of its bucket: logarithms in float32 fall on either side of it, by how they are compiled.
    "at a border": RelativeBiasConfig(128, 100),
    "at a border, both ways": RelativeBiasConfig(256, 100, bidirectional=True),
}


@pytest.mark.parametrize("name", BIASES)
def test_a_row_and_its_cache_have_the_same_biases(name: str):
    config = ScoresConfig(bias=BIASES[name])
    buckets = getattr(config.bias, "buckets", 1)
    bias_RN = jnp.asarray(np.random.default_rng(0).normal(size=(buckets, N)), jnp.float32)
    sequence = SequenceInfo(jnp.arange(T)[None])
    within = jax.jit(lambda sequence: Pairs(Causal(), sequence, None, config, bias_RN).bias(N))(sequence)
    across = jax.jit(lambda sequence: Pairs(Causal(), sequence, sequence, config, bias_RN).bias(N))(sequence)
    # ALiBi's biases of keys that nothing sees may differ.
    seen = np.tril(np.ones((T, T), bool)) if name != "t5, encoder" else np.ones((T, T), bool)
    np.testing.assert_array_equal(np.where(seen, within, 0), np.where(seen, across, 0))


def _bucket(config: RelativeBiasConfig, distance: int) -> int:
    """In whole numbers: bucket e + k begins at e * (m / e) ** (k / far), for e own ones, `far` others and m at most."""
    own = config.buckets // 2 if config.bidirectional else config.buckets
    first = own if config.bidirectional and distance > 0 else 0
    away = abs(distance) if config.bidirectional else max(-distance, 0)
    exact, most = own // 2, config.max_distance
    far = own - exact
    if away < exact:
        return first + away
    passed = [k for k in range(far) if most**k * exact ** (far - k) <= away**far]
    return first + exact + max(passed)


@pytest.mark.parametrize("name", [name for name in BIASES if name != "alibi"])
def test_buckets_begin_where_the_formula_says(name: str):
    config = BIASES[name]
    distance = np.arange(-T, T)
    expected = [_bucket(config, int(one)) for one in distance]
    np.testing.assert_array_equal(jax.jit(config.bucket)(distance), expected)
    np.testing.assert_array_equal(jax.jit(lambda: config.bucket(distance))(), expected)

"""Learned biases by relative place: T5's buckets in whole numbers, and the table that is looked up."""

import importlib.util

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.dtypes import Precision
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.attention.kernels import BlockedKernel, PlainKernel
from llm_jax.layers.attention.masks import Bidirectional, Causal
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.context import Context
from llm_jax.layers.positions.relative_bias import LayerRelativeBiasConfig, RelativeBias, RelativeBiasConfig
from llm_jax.layers.sequence import SequenceInfo

N = 3
GENERATOR = np.random.default_rng(0)
CASES = {
    "t5, one way": RelativeBiasConfig(),
    "t5, both ways": RelativeBiasConfig(bidirectional=True),
    "few": RelativeBiasConfig(6, 11),
    "few, both ways": RelativeBiasConfig(8, 7, bidirectional=True),
    "wide": RelativeBiasConfig(64, 1000, bidirectional=True),
}
DISTANCES = np.arange(-1500, 1501)


def _bucket(config: RelativeBiasConfig, distance: int) -> int:
    """In whole numbers alone. Of the E far buckets of a direction, the one that begins at E (M / E)^(j / far) is the
    last whose beginning is not beyond the distance: n^far >= E^far (M / E)^j."""
    own, first = config.buckets, 0
    if config.bidirectional:
        own //= 2
        first = own if distance > 0 else 0
        n = abs(distance)
    else:
        n = max(-distance, 0)
    exact = own // 2
    if n < exact:
        return first + n
    far = own - exact
    begun = [j for j in range(far) if n**far * exact**j >= exact**far * config.max_distance**j]
    return first + exact + begun[-1]


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_buckets_are_those_of_whole_numbers(config):
    expected = np.array([_bucket(config, distance) for distance in DISTANCES.tolist()])
    np.testing.assert_array_equal(config.bucket(DISTANCES), expected)
    np.testing.assert_array_equal(jax.jit(config.bucket)(jnp.asarray(DISTANCES)), expected)
    # Later keys have a bucket for distance 0 too, at which none of them stands.
    never = {config.buckets // 2} if config.bidirectional else set()
    assert set(expected) == set(range(config.buckets)) - never


def test_near_distances_have_a_bucket_each_and_far_ones_share_the_last():
    config = RelativeBiasConfig()
    np.testing.assert_array_equal(config.bucket(-np.arange(16)), np.arange(16))
    np.testing.assert_array_equal(config.bucket(-np.array([128, 129, 5000])), 31)
    np.testing.assert_array_equal(config.bucket(np.array([1, 50, 5000])), 0)  # nothing sees these
    both = RelativeBiasConfig(bidirectional=True)
    np.testing.assert_array_equal(both.bucket(np.arange(1, 8)), np.arange(17, 24))
    np.testing.assert_array_equal(both.bucket(np.array([-128, 128])), [15, 31])


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_buckets_are_those_of_transformers(config):
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: the reference in whole numbers stands alone")
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    theirs = T5Attention._relative_position_bucket(
        torch.from_numpy(DISTANCES), config.bidirectional, config.buckets, config.max_distance
    )
    np.testing.assert_array_equal(config.bucket(DISTANCES), theirs.numpy())


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_a_pair_has_the_number_of_its_bucket_and_head(config):
    table = GENERATOR.normal(size=(config.buckets, N)).astype(np.float32)
    queries, keys = np.array([[3, 0], [7, 40]]), np.array([[0, 3, 900], [41, 7, 2]])
    bias = config.across(N, jnp.asarray(queries), jnp.asarray(keys), jnp.asarray(table))
    assert bias.shape == (2, N, 2, 3) and bias.dtype == jnp.float32
    for b, n, t, s in np.ndindex(*bias.shape):
        assert bias[b, n, t, s] == table[_bucket(config, int(keys[b, s] - queries[b, t])), n]


def test_a_layer_may_have_a_table_of_its_own():
    """It then reads none that others share."""
    options = {"buckets": 8, "max_distance": 7}
    shared, own = (
        AttentionConfig(N, 4, N, scores=ScoresConfig(bias=kind(**options)))
        for kind in (RelativeBiasConfig, LayerRelativeBiasConfig)
    )
    assert own.parameters(6) - shared.parameters(6) == 8 * N
    place = SequenceInfo(jnp.arange(10)[None])
    x = jnp.asarray(GENERATOR.normal(size=(1, 10, 6)), jnp.float32)
    layer = own.build(6, Precision(), None)
    params = nn.unbox(layer.init(jax.random.key(0), x, Context(place))["params"])
    table = jnp.asarray(GENERATOR.normal(size=(8, N)), jnp.float32)
    found, _ = layer.apply(
        {"params": params | {"relative_bias": {"table": table}}}, x, Context(place, bias_RN=2 * table)
    )
    del params["relative_bias"]
    expected, zero = (
        shared.build(6, Precision(), None).apply({"params": params}, x, Context(place, bias_RN=biases))[0]
        for biases in (table, 0 * table)
    )
    np.testing.assert_array_equal(found, expected)
    assert np.abs(expected - zero).max() > 1e-3


def test_what_a_bucket_learns_is_the_sum_over_its_pairs():
    config, places = RelativeBiasConfig(6, 11), np.arange(30)
    weights = GENERATOR.normal(size=(1, N, 30, 30)).astype(np.float32)
    row = jnp.asarray(places)[None]
    loss = lambda table: jnp.sum(config.across(N, row, row, table) * weights)  # noqa: E731
    expected = np.zeros((6, N))
    for t, s in np.ndindex(30, 30):
        expected[_bucket(config, int(places[s] - places[t]))] += weights[0, :, t, s]
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(jnp.zeros((6, N))), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [PlainKernel(), BlockedKernel(3)], ids=["plain", "blocks of 3"])
@pytest.mark.parametrize("mask", [Causal(), Causal(4), Bidirectional()], ids=["causal", "window", "both ways"])
def test_attention_raises_scores_by_it_and_the_table_learns(mask, kernel):
    bias = RelativeBiasConfig(8, 7, bidirectional=isinstance(mask, Bidirectional))
    layer = AttentionConfig(N, 4, N, mask, scores=ScoresConfig(bias=bias), kernel=kernel).build(6, Precision(), None)
    x, y = (jnp.asarray(GENERATOR.normal(size=(2, 10, 6)), jnp.float32) for _ in range(2))
    shapes = {name: (N, 4, 6) if name == "out" else (6, N, 4) for name in ("query", "key", "value", "out")}
    kernels = {name: jnp.asarray(GENERATOR.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    table = jnp.asarray(GENERATOR.normal(size=(bias.buckets, N)), jnp.float32)
    segments = np.array([[1] * 4 + [2] * 6, [1] * 10])
    positions = np.array([[*range(4), *range(6)], [*range(10)]])
    place, distance = (
        SequenceInfo(jnp.asarray(positions), jnp.asarray(segments)),
        np.arange(10) - np.arange(10)[:, None],
    )
    same = segments[:, :, None] == segments[:, None, :]
    seen = same & ((distance <= 0) & (distance > -(mask.window or 10)) if isinstance(mask, Causal) else same)
    buckets = np.array([[_bucket(bias, int(item)) for item in row] for row in distance])

    def reference(table):
        q, k, v = (jnp.einsum("BTD,DNH->BNTH", x, kernels[name]) for name in ("query", "key", "value"))
        scores = jnp.einsum("BNTH,BNSH->BNTS", q, k) / 2 + table[buckets].transpose(2, 0, 1)
        weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
        return jnp.einsum("BNTS,BNSH,NHD->BTD", weights, v, kernels["out"])

    def ours(table):
        params = {name: {"kernel": kernel} for name, kernel in kernels.items()}
        return layer.apply({"params": params}, x, Context(place, bias_RN=table))[0]

    @jax.jit
    def both(table, cotangent):
        pairs = (jax.vjp(function, table) for function in (ours, reference))
        return [(y, *pull(cotangent)) for y, pull in pairs]

    for actual, expected in zip(*both(table, y), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)
        assert np.abs(expected).max() > 0.1


def test_the_table_has_a_row_a_bucket_and_the_scale_of_its_config():
    config = RelativeBiasConfig(64, 1000)
    table = RelativeBias(config, 48, Precision()).init(jax.random.key(0))["params"]["table"]
    assert table.value.size == config.parameters(48) == 64 * 48
    np.testing.assert_allclose(np.std(table.value), 0.02, rtol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buckets": 0}, "buckets is 0"),
        ({"buckets": 5}, "bias.buckets is 5: it must be even"),
        ({"buckets": 6, "bidirectional": True}, "bias.buckets is 6: .* use a multiple of 4"),
        ({"buckets": 32, "max_distance": 16}, "bias.max_distance is 16: it must exceed the 16 distances"),
    ],
)
def test_bad_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RelativeBiasConfig(**options)

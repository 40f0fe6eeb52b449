"""Routers that learn nothing: what is fixed is fixed, what is drawn is drawn evenly."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.core.dtypes import Precision
from llm_jax.layers.ffn.routers.fixed import HashConfig, RandomConfig, dealt
from tests.helpers import routing

X = np.zeros((2, 50, 3), np.float32)
REAL = np.ones((2, 50), bool)


def _routes(config, experts, tokens=None, key=None, x=X):
    router = config.build(x.shape[-1], experts, Precision(), "router")
    rngs = None if key is None else {"dropout": key}
    return router.apply({}, x, routing.context(np.ones(x.shape[:2], bool), tokens), rngs=rngs).routes


def _distinct(experts_BTK):
    rows = np.asarray(experts_BTK).reshape(-1, experts_BTK.shape[-1])
    return all(len(set(row)) == len(row) for row in rows)


@pytest.mark.parametrize("top", [1, 2, 7])
def test_a_hash_knows_a_token_again_whatever_it_has_become(top):
    tokens = np.random.default_rng(0).integers(0, 20, (2, 50)).astype(np.int32)
    routes = _routes(HashConfig(top), 7, tokens)
    other = _routes(HashConfig(top), 7, tokens, key=jax.random.key(1), x=X + 3)
    np.testing.assert_array_equal(routes.experts_BTK, other.experts_BTK)
    by_id = {}
    for token, experts in zip(tokens.ravel(), np.asarray(routes.experts_BTK).reshape(-1, top), strict=True):
        assert by_id.setdefault(token, tuple(experts)) == tuple(experts)
    assert _distinct(routes.experts_BTK)
    np.testing.assert_allclose(routes.weights_BTK, 1 / top, rtol=1e-6)


def _finalized(number):
    """MurmurHash3's fmix32, in whole numbers of any size."""
    number ^= number >> 16
    number = number * 0x85EBCA6B % 2**32
    number ^= number >> 13
    number = number * 0xC2B2AE35 % 2**32
    return number ^ number >> 16


@pytest.mark.parametrize("top", [1, 2])
@pytest.mark.parametrize(("vocabulary", "experts"), [(5, 2), (32, 3), (1000, 64), (2**31, 8)])
def test_a_hash_ranks_experts_by_the_finalizer_of_murmurhash_bit_by_bit(vocabulary, experts, top):
    tokens = np.unique(np.linspace(0, vocabulary - 1, 200).astype(np.int32))
    expected = []
    for token in tokens.tolist():
        mixes = [_finalized((_finalized(token) + expert) % 2**32) >> 1 for expert in range(experts)]
        expected.append(routing.best(np.array(mixes), top))
    routes = _routes(HashConfig(top), experts, tokens[None], x=np.zeros((1, len(tokens), 3), np.float32))
    np.testing.assert_array_equal(routes.experts_BTK[0], expected)


@pytest.mark.parametrize("top", [1, 2])
@pytest.mark.parametrize(("vocabulary", "experts"), [(1, 2), (32, 3), (300, 8)])
def test_ids_are_dealt_each_to_the_experts_with_least_text_so_far(vocabulary, experts, top):
    counts = np.random.default_rng(vocabulary).integers(0, 20, vocabulary)  # many are equal, some are 0
    table, loads = np.zeros((vocabulary, top), np.int32), np.zeros(experts, np.int64)
    for token in np.argsort(-counts, kind="stable"):
        table[token] = np.argsort(loads, kind="stable")[:top]
        loads[table[token]] += counts[token]
    config, tokens = HashConfig(top, tuple(counts.tolist())), np.arange(vocabulary, dtype=np.int32)[None]
    routes = _routes(config, experts, tokens, x=np.zeros((1, vocabulary, 3), np.float32))
    np.testing.assert_array_equal(routes.experts_BTK[0], table)


def test_a_hash_gives_all_experts_about_as_many_ids():
    tokens = np.arange(8000, dtype=np.int32).reshape(1, -1)
    routes = _routes(HashConfig(2), 8, tokens, x=np.zeros((1, 8000, 3), np.float32))
    counts = np.bincount(np.asarray(routes.experts_BTK).ravel(), minlength=8)
    # Binomial: mean 2000, deviation 39.
    assert abs(counts - 2000).max() < 200
    pairs = np.asarray(routes.experts_BTK)[0] @ [8, 1]
    assert len(set(pairs)) == 8 * 7


def test_ids_of_known_frequency_are_dealt_evenly():
    # Zipf: by a plain hash the expert of the commonest id alone would have 19 % of the text.
    counts = tuple(int(10000 / (rank + 1)) for rank in range(200))
    table = dealt(counts, 1, 4)
    loads = np.bincount(table[:, 0], weights=counts, minlength=4)
    assert loads.max() / loads.mean() < 1.01
    tokens = np.arange(200, dtype=np.int32).reshape(1, -1)
    routes = _routes(HashConfig(1, counts), 4, tokens, x=np.zeros((1, 200, 3), np.float32))
    np.testing.assert_array_equal(routes.experts_BTK[0], table)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(1, 6), st.integers(1, 6))
def test_dealing_never_leaves_experts_further_apart_than_the_commonest_id(counts, top, experts):
    top = min(top, experts)
    table = dealt(tuple(counts), top, experts)
    assert _distinct(table)
    loads = np.zeros(experts)
    for row, count in zip(table, counts, strict=True):
        loads[row] += count
    assert loads.max() - loads.min() <= max(counts)


def test_random_experts_differ_by_key_and_are_even():
    config = RandomConfig(2)
    one, two = (np.asarray(_routes(config, 4, key=jax.random.key(seed)).experts_BTK) for seed in (0, 1))
    assert (one != two).any() and _distinct(one)
    x = np.zeros((8, 1000, 3), np.float32)
    counts = np.bincount(np.asarray(_routes(config, 4, key=jax.random.key(0), x=x).experts_BTK).ravel())
    assert abs(counts - 4000).max() < 250
    still = _routes(config, 4).experts_BTK
    np.testing.assert_array_equal(still[0], still[1])
    assert len(set(np.asarray(still)[0, :, 0])) == 4


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="requires token ids, and the inputs have features only"):
        _routes(HashConfig(), 4)
    for config in (HashConfig(5), RandomConfig(5)):
        with pytest.raises(ValueError, match="router.top is 5 and there are 4 experts"):
            config.check(4)
    with pytest.raises(ValueError, match="top is 0"):
        HashConfig(0)
    for counts in ((), (3, -1)):
        with pytest.raises(ValueError, match="router.counts is empty or has a negative count"):
            HashConfig(1, counts)

"""Tokens are assigned evenly in training, and by their logits at evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.layers.ffn.routers.sinkhorn import SinkhornConfig, evening
from llm_jax.layers.ffn.routing import load
from tests.helpers import routing
from tests.helpers.routing import route

KEY = jax.random.key(0)


def _plan(logits, real, iterations):
    """The assignment after so many turns, by products of rows and columns in float64: [real tokens, E]."""
    plan = np.exp(logits[real].astype(np.float64))
    for _ in range(iterations):
        plan /= plan.sum(1, keepdims=True)
        plan *= len(plan) / plan.shape[1] / plan.sum(0, keepdims=True)
    return plan


@pytest.mark.parametrize("top", [1, 3])
def test_experts_are_those_of_the_assignment(top):
    logits = routing.random_logits(2, 9, 4)
    real = np.arange(9)[None] < np.array([[9], [6]])
    routes = route(SinkhornConfig(top, iterations=5), logits, real, KEY).routes
    expected = routing.chosen(_plan(logits, real, 5)[None], top)[0]
    np.testing.assert_array_equal(np.asarray(routes.experts_BTK)[real], expected)
    weights = routing.sigmoid(routing.at(logits, routes.experts_BTK))
    np.testing.assert_allclose(routes.weights_BTK, weights, rtol=1e-5)


def test_evaluation_follows_the_logits():
    logits = routing.random_logits(2, 9, 4)
    found = route(SinkhornConfig(2), logits)
    np.testing.assert_array_equal(found.routes.experts_BTK, routing.chosen(logits, 2))


def test_tokens_that_would_all_go_to_one_expert_are_spread():
    logits = routing.random_logits(1, 400, 4)
    logits[..., 2] += 4
    config, ones = SinkhornConfig(1, iterations=30), jnp.ones((1, 400))
    before = np.asarray(load(route(config, logits).routes, 4, ones).sum((0, 1)))
    after = np.asarray(load(route(config, logits, key=KEY).routes, 4, ones).sum((0, 1)))
    assert before.max() / before.mean() > 2.5
    assert after.max() / after.mean() < 1.3


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=8, max_size=8), st.integers(0, 100))
def test_what_padding_holds_changes_nothing_and_sums_become_even(real, seed):
    real = np.array(real).reshape(1, 8)
    logits = routing.random_logits(1, 8, 3, seed)
    other = np.where(real[..., None], logits, 40)
    one, two = (evening(jnp.asarray(x), jnp.asarray(real), 60) for x in (logits, other))
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    if real.any():
        sums = np.asarray(jax.nn.softmax(logits + one))[real].sum(0)
        np.testing.assert_allclose(sums, real.sum() / 3, rtol=0.05)


def test_it_looks_ahead_in_training_and_says_so():
    assert not SinkhornConfig().causal and SinkhornConfig(allow_future=True).causal
    with pytest.raises(ValueError, match="router.top is 3 and there are 2 experts"):
        SinkhornConfig(3).check(2)
    with pytest.raises(ValueError, match="iterations is 0"):
        SinkhornConfig(iterations=0)

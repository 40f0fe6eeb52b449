"""Experts pick the tokens that suit them, all as many, and no padding."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.layers.ffn.routers.expert_choice import ExpertChoiceConfig
from llm_jax.layers.ffn.routing import load
from tests.helpers import routing
from tests.helpers.routing import route


def _picked(probabilities, real, group, picks):
    """Places and weights [B, G, E, C], expert by expert."""
    batch, length, experts = probabilities.shape
    places = np.zeros((batch, length // group, experts, picks), np.int32)
    weights = np.zeros(places.shape)
    for row, part, expert in np.ndindex(places.shape[:3]):
        here = slice(part * group, (part + 1) * group)
        worth = np.where(real[row, here], probabilities[row, here, expert], 0)
        places[row, part, expert] = routing.best(worth, picks)
        weights[row, part, expert] = worth[places[row, part, expert]]
    return places, weights


@pytest.mark.parametrize("factor", [0.5, 1, 2, 4])
@pytest.mark.parametrize("group", [None, 4, 12])
def test_every_expert_picks_the_tokens_that_prefer_it_most(factor, group):
    logits = routing.random_logits(2, 12, 4)
    config = ExpertChoiceConfig(factor, group, allow_future=True)
    found = route(config, logits)
    picks = int(np.ceil((group or 12) * factor / 4))
    places, weights = _picked(routing.softmax(logits), np.ones((2, 12), bool), group or 12, picks)
    np.testing.assert_array_equal(found.routes.places_BGEC, places)
    np.testing.assert_allclose(found.routes.weights_BGEC, weights, rtol=1e-5)
    served = np.asarray(load(found.routes, 4, jnp.ones((2, 12))))
    assert set(served.ravel()) <= {0, 1}
    np.testing.assert_array_equal(served.sum((0, 1)), 2 * 12 // (group or 12) * picks)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_padding_is_never_picked_and_of_equal_tokens_the_first_are(data):
    values = data.draw(st.lists(st.integers(0, 1), min_size=18, max_size=18))
    real = np.array(data.draw(st.lists(st.booleans(), min_size=6, max_size=6))).reshape(1, 6)
    logits = np.array(values, np.float32).reshape(1, 6, 3)
    found = route(ExpertChoiceConfig(1.5), logits, real)
    # Its own scores, of which two that should be equal may differ by rounding.
    places, weights = _picked(np.asarray(found.scores_BTE), real, 6, 3)
    # Of the real tokens, not of the group with its padding.
    weights[..., math.ceil(1.5 * real.sum() / 3) :] = 0
    np.testing.assert_allclose(found.routes.weights_BGEC, weights, rtol=1e-5)
    np.testing.assert_array_equal(found.routes.places_BGEC[weights > 0], places[weights > 0])
    served = np.asarray(load(found.routes, 3, jnp.asarray(real, jnp.float32)))
    assert not served[~real].any()
    assert served.sum() == 3 * math.ceil(1.5 * real.sum() / 3)


def test_what_padding_holds_changes_nothing():
    logits, real = routing.random_logits(1, 8, 4), np.arange(8)[None] < 5
    other = np.where(real[..., None], logits, 50)
    one, two = (route(ExpertChoiceConfig(2), x, real).routes for x in (logits, other))
    np.testing.assert_array_equal(one.weights_BGEC, two.weights_BGEC)


def test_it_looks_ahead_and_says_so():
    logits = routing.random_logits(1, 8, 2)
    before = np.asarray(load(route(ExpertChoiceConfig(1), logits).routes, 2, jnp.ones((1, 8))))
    later = logits.copy()
    later[0, 4:] = 9 * np.eye(2)[[0, 1, 0, 1]]
    after = np.asarray(load(route(ExpertChoiceConfig(1), later).routes, 2, jnp.ones((1, 8))))
    assert (before[0, :4] != after[0, :4]).any()
    assert not ExpertChoiceConfig(1).causal and ExpertChoiceConfig(1, allow_future=True).causal


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="router.factor is 5 and there are 4 experts"):
        ExpertChoiceConfig(5).check(4)
    with pytest.raises(
        ValueError, match="router.group is 3 and the length of a sequence is 8: router.group must divide"
    ):
        ExpertChoiceConfig(1, 3).check_rows(8, 1)
    with pytest.raises(ValueError, match="factor is 0"):
        ExpertChoiceConfig(0)


def test_weights_teach_the_router():
    def loss(logits):
        config, experts = ExpertChoiceConfig(1), logits.shape[-1]
        router = config.build(experts, experts, routing.Precision(), "router")
        own = {"params": {"scores": {"kernel": jnp.eye(experts)}}}
        return jnp.sum(router.apply(own, logits, routing.context(np.ones((1, 6), bool))).routes.weights_BGEC ** 2)

    logits = routing.random_logits(1, 6, 3)
    gradient = jax.grad(loss)(jnp.asarray(logits))
    places, _ = _picked(routing.softmax(logits), np.ones((1, 6), bool), 6, 2)

    def expected(logits):
        probabilities = jax.nn.softmax(logits)[0]
        return sum(probabilities[place, expert] ** 2 for expert in range(3) for place in places[0, 0, expert])

    np.testing.assert_allclose(gradient, jax.grad(expected)(jnp.asarray(logits)), rtol=1e-4, atol=1e-6)

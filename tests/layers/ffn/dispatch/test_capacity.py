"""Experts of limited capacity against the rule written out token by token.

Legend: B batch, T length, E experts, K choices of a token.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.layers.ffn.dispatch.capacity import Capacity, FixedCapacity
from llm_jax.layers.ffn.dispatch.dense import Dense
from llm_jax.layers.ffn.dispatch.seats import ByIndex, ByProducts
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.fixed import HashConfig, RandomConfig
from llm_jax.layers.ffn.routing import Choice
from tests.helpers.dispatching import EXPERT, both, choice, choices, everyone, loads, serve, tokens, weights

E = 4


def _served(dispatch: Capacity, routes: Choice, real_BT, count: int = E) -> np.ndarray:
    """Which choices are served, bool [B, T, K]: places are given away one after the other."""
    experts_BTK, weights_BTK = np.asarray(routes.experts_BTK), np.asarray(routes.weights_BTK)
    best_BT = weights_BTK.max(-1) if routes.best_BT is None else np.asarray(routes.best_BT)
    batch, length, top = experts_BTK.shape
    group = dispatch.group or length
    served_BTK = np.zeros(experts_BTK.shape, bool)
    for row in range(batch):
        for start in range(0, length, group):
            queue = [t for t in range(start, min(start + group, length)) if real_BT[row, t]]
            free = [math.ceil(dispatch.factor * top * len(queue) / count)] * count
            if dispatch.priority == "score":
                queue.sort(key=lambda t: -best_BT[row, t])
            for k in range(top):
                for t in queue:
                    expert = experts_BTK[row, t, k]
                    if weights_BTK[row, t, k] > 0 and free[expert] > 0:
                        free[expert] -= 1
                        served_BTK[row, t, k] = True
    return served_BTK


def _agrees(dispatch: Capacity, routes: Choice, real_BT, count: int = E) -> None:
    """Results and gradients are those of all experts with the weights of dropped choices set to 0."""
    arguments, real_BT = (weights(count), tokens(*real_BT.shape)), np.asarray(real_BT)
    served_BTK = _served(dispatch, routes, real_BT, count)
    (y_BTD, served_BT), found = both(dispatch, *arguments, routes, jnp.asarray(real_BT))
    np.testing.assert_array_equal(served_BT, served_BTK.sum(-1))
    kept = routes.replace(weights_BTK=jnp.where(served_BTK, routes.weights_BTK, 0))
    (expected_BTD, _), (dweights, dx_BTD, droutes_BTK) = both(Dense(), *arguments, kept, jnp.asarray(real_BT))
    # A choice that is dropped teaches the router nothing.
    expected = expected_BTD, dweights, dx_BTD, np.where(served_BTK, droutes_BTK, 0)
    same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(same, (y_BTD, *found), expected)


@pytest.mark.parametrize("moves", [ByIndex(), ByProducts()])
@pytest.mark.parametrize(
    ("factor", "priority", "group"),
    [(0.01, "position", None), (0.5, "position", 6), (0.5, "score", 5), (1.25, "score", None), (1.25, "position", 5)],
)
def test_places_are_given_away_in_order(factor, priority, group, moves):
    real_BT = np.random.default_rng(3).random((2, 24)) > 0.2
    _agrees(Capacity(factor, priority, group, moves), choices(2, 24, E, 2, seed=4), real_BT)


HYPOTHETICAL = [  # shape B, T, E, K; one sequence, every expert chosen, short groups
    ((2, 6, 4, 2), Capacity(0.5)),
    ((2, 6, 4, 2), Capacity(0.01, "score")),
    ((1, 7, 3, 3), Capacity(0.01, group=4)),
    ((1, 7, 3, 3), Capacity(0.5, "score", group=4)),
    ((2, 5, 4, 1), Capacity(1.0, "score", moves=ByProducts())),
]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), case=st.sampled_from(HYPOTHETICAL))
def test_ties_empty_experts_and_crowds_are_settled_in_order(data, case):
    shape, dispatch = case
    _agrees(dispatch, *data.draw(loads(*shape)), shape[2])


def test_first_choices_come_before_second_ones():
    experts = [[[0, 1], [1, 0], [0, 1], [1, 0]]]
    x_BTD = tokens(1, 4)
    routes = choice(experts, np.full((1, 4, 2), 0.5))
    # Places of each expert: ceil(0.5 * 2 * 4 / 4) = 1.
    _, served_BT = serve(Capacity(0.5), weights(E), x_BTD, routes, everyone(x_BTD))
    np.testing.assert_array_equal(served_BT, [[1, 1, 0, 0]])


def test_the_highest_score_comes_first_whatever_its_place():
    x_BTD = tokens(1, 4)
    routes = choice(np.zeros((1, 4, 1)), [[[0.2], [0.1], [0.9], [0.3]]])
    y_BTD, served_BT = serve(Capacity(2.0, "score"), weights(E), x_BTD, routes, everyone(x_BTD))
    np.testing.assert_array_equal(served_BT, [[0, 0, 1, 1]])
    np.testing.assert_array_equal(np.asarray(y_BTD)[0, :2], 0)


def test_scores_come_first_where_weights_are_all_one():
    x_BTD = tokens(1, 4)
    routes = choice(np.zeros((1, 4, 1)), np.ones((1, 4, 1))).replace(best_BT=jnp.asarray([[0.5, 0.1, 0.9, 0.7]]))
    for real, expected in (([1, 1, 1, 1], [0, 0, 1, 1]), ([1, 1, 0, 1], [1, 0, 0, 1])):
        _, served_BT = serve(Capacity(2.0, "score"), weights(E), x_BTD, routes, jnp.asarray([real], bool))
        np.testing.assert_array_equal(served_BT, [expected])


@pytest.mark.parametrize("router", [HashConfig(1), RandomConfig(1)])
def test_routers_without_scores_have_no_priority_by_score(router):
    MoEConfig(E, EXPERT, router, Capacity())
    with pytest.raises(ValueError, match="is 'score' and router .* has no scores: set dispatch.priority to 'pos"):
        MoEConfig(E, EXPERT, router, Capacity(priority="score"))


@pytest.mark.parametrize(
    ("factor", "tokens", "choices", "experts", "places"),
    [(1.25, 256, 2, 8, 80), (1.0, 100, 1, 3, 34), (1e-6, 16, 1, 8, 1), (100.0, 16, 2, 8, 16), (1.1, 10, 2, 1, 10)],
)
def test_places_are_those_of_switch_at_least_one_and_at_most_all(factor, tokens, choices, experts, places):
    assert Capacity(factor).expert_capacity(tokens, choices, experts) == places


def test_a_product_that_is_whole_but_for_rounding_gives_no_place_more():
    assert 1.1 * 2 * 100 / 10 > 22 and Capacity(1.1).expert_capacity(100, 2, 10) == 22


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"factor": 0.0}, "factor is 0.0: it must be finite and greater than 0"),
        ({"factor": -1.0}, "factor is -1.0: it must be finite and greater than 0"),
        ({"group": 0}, "group is 0: it must be greater than 0"),
        ({"priority": "scores"}, "did you mean 'score'"),
    ],
)
def test_what_would_drop_everything_or_means_nothing_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message.replace("?", ".")):
        Capacity(**wrong)


def test_groups_that_lie_on_several_devices_are_refused():
    Capacity().check_rows(64, 1)
    Capacity(group=8).check_rows(64, 4)
    for group in (None, 32, 12):
        with pytest.raises(ValueError, match="it must hold whole groups; set dispatch.group to a divisor of 16"):
            Capacity(group=group).check_rows(64, 4)


def test_a_fixed_capacity_is_that_of_rows_of_every_length():
    assert [FixedCapacity(limit=3).expert_capacity(tokens, 1, 4) for tokens in (1, 3, 24, 600)] == [1, 3, 3, 3]
    with pytest.raises(ValueError, match="limit is 0: it must be greater than 0"):
        FixedCapacity(limit=0)
    with pytest.raises(ValueError, match="group is 0: it must be greater than 0"):
        FixedCapacity(group=0)


@pytest.mark.parametrize(("priority", "expected"), [("position", [1, 1, 0, 0]), ("score", [1, 0, 1, 0])])
def test_a_fixed_capacity_is_given_away_in_the_same_order(priority, expected):
    x_BTD = tokens(1, 4)
    routes = choice(np.zeros((1, 4, 1)), [[[0.4], [0.1], [0.9], [0.3]]])
    _, served_BT = serve(FixedCapacity(limit=2, priority=priority), weights(E), x_BTD, routes, everyone(x_BTD))
    np.testing.assert_array_equal(served_BT, [expected])

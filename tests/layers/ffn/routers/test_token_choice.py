"""Tokens choose the experts that the papers' formulas say, with their weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.core import trees
from llm_jax.core.dtypes import MIXED, Precision
from llm_jax.layers.ffn.routers.groups import GroupLimit
from llm_jax.layers.ffn.routers.router_scores import Jitter, Noisy
from llm_jax.layers.ffn.routers.token_choice import SigmoidConfig, SoftmaxConfig
from llm_jax.layers.ffn.routing import load
from tests.helpers import routing
from tests.helpers.routing import route

LOGITS = routing.random_logits(2, 7, 8)
LIMITS = [None, GroupLimit(4, 2, best=1), GroupLimit(4, 2, best=2), GroupLimit(2, 1, best=3)]
KEY = jax.random.key(5)


def _check(found, experts_BTK, weights_BTK):
    np.testing.assert_array_equal(found.routes.experts_BTK, experts_BTK)
    np.testing.assert_allclose(found.routes.weights_BTK, weights_BTK, rtol=2e-6)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("top", [1, 2, 4])
def test_softmax_chooses_by_probability(top, limit):
    probabilities = routing.softmax(LOGITS)
    experts = routing.chosen(probabilities, top, limit)
    weights = routing.at(probabilities, experts)
    _check(route(SoftmaxConfig(top, normalized=False, scale=1.5, limit=limit), LOGITS), experts, 1.5 * weights)
    _check(route(SoftmaxConfig(top, limit=limit), LOGITS), experts, weights / weights.sum(-1, keepdims=True))


def test_normalised_weights_are_the_softmax_of_the_chosen_logits():
    found = route(SoftmaxConfig(3, bias=True), LOGITS, scores={"kernel": np.eye(8), "bias": np.arange(8.0)})
    logits = LOGITS + np.arange(8)
    experts = routing.chosen(logits, 3)
    _check(found, experts, routing.softmax(routing.at(logits, experts)))
    np.testing.assert_allclose(found.logits_BTE, logits, rtol=1e-6)


@pytest.mark.parametrize("limit", LIMITS)
def test_the_bias_of_a_sigmoid_serves_the_choice_only(limit):
    bias = np.random.default_rng(3).normal(0, 0.5, 8).astype(np.float32)
    scores = routing.sigmoid(LOGITS)
    experts = routing.chosen(scores + bias, 3, limit)
    weights = routing.at(scores, experts)
    assert (experts != routing.chosen(scores, 3, limit)).any()
    found = route(SigmoidConfig(3, scale=2.5, limit=limit), LOGITS, bias=bias)
    _check(found, experts, 2.5 * weights / weights.sum(-1, keepdims=True))
    _check(route(SigmoidConfig(3, normalized=False, limit=limit), LOGITS, bias=bias), experts, weights)
    np.testing.assert_allclose(found.scores_BTE, scores, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), shape=st.sampled_from([(1, 1, 1, 1), (1, 5, 3, 3), (3, 2, 6, 2), (2, 3, 6, 6)]))
def test_of_equal_scores_the_first_expert_is_chosen(data, shape):
    batch, length, experts, top = shape
    count = batch * length * experts
    # Few different values, so that many are equal; rows of equal values send all tokens to the first experts.
    values = data.draw(st.lists(st.integers(-2, 2), min_size=count, max_size=count))
    logits = np.array(values, np.float32).reshape(batch, length, experts)
    found = route(SoftmaxConfig(top), logits)
    np.testing.assert_array_equal(found.routes.experts_BTK, routing.chosen(logits, top))
    np.testing.assert_allclose(found.routes.weights_BTK.sum(-1), 1, rtol=1e-6)
    assert all(len(set(row)) == top for row in np.asarray(found.routes.experts_BTK).reshape(-1, top))
    told = load(found.routes, experts, jnp.ones((batch, length)))
    np.testing.assert_array_equal(told.sum(-1), top)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), top=st.sampled_from([1, 3]), limit=st.sampled_from(LIMITS[1:]))
def test_of_equal_groups_and_experts_the_first_are_chosen(data, top, limit):
    # Scores of exactly 0, 0.5 and 1, and sums with the bias that no rounding tells apart.
    several = lambda of, count: np.array(data.draw(st.lists(st.sampled_from(of), min_size=count, max_size=count)))  # noqa: E731
    logits, bias = several([-200.0, 0.0, 200.0], 16).reshape(1, 2, 8), several([-0.25, 0.0, 0.25], 8)
    found = route(SigmoidConfig(top, limit=limit), logits, bias=bias.astype(np.float32))
    scores = np.sign(logits) / 2 + 0.5
    np.testing.assert_array_equal(found.scores_BTE, scores)
    np.testing.assert_array_equal(found.routes.experts_BTK, routing.chosen(scores + bias, top, limit))
    for ranks, experts in zip((scores + bias)[0], np.asarray(found.routes.experts_BTK[0]), strict=True):
        assert len(set(experts)) == top
        groups = set(experts // (8 // limit.groups))
        assert len(groups) <= limit.kept
        worth = np.sort(ranks.reshape(limit.groups, -1))[:, -limit.best :].sum(-1)
        assert min(worth[list(groups)]) >= np.sort(worth)[-limit.kept]
        inside = np.isin(np.arange(8) // (8 // limit.groups), list(groups))
        inside[experts] = False
        assert all(ranks[inside] <= min(ranks[experts]))


def test_scores_that_saturate_leave_weights_finite():
    logits = np.full((1, 2, 8), -200, np.float32)
    for config in (SoftmaxConfig(2), SigmoidConfig(2, corrected=False)):
        assert np.isfinite(route(config, logits).routes.weights_BTK).all()


@pytest.mark.parametrize("config", [SoftmaxConfig(2, bias=True), SigmoidConfig(2)])
def test_a_router_is_float32_whatever_the_compute_type(config):
    # Logits apart by less than bfloat16 can tell at their size.
    logits = jnp.asarray(np.array([[[8.0, 8.01, 8.02, 0.0]]]), jnp.float32)
    router = config.build(4, 4, MIXED, "router")
    own = {"scores": {"kernel": jnp.eye(4)}, "bias": jnp.zeros(4)}
    if isinstance(config, SoftmaxConfig):
        own = {"scores": {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}}
    found = router.apply({"params": own}, logits, routing.context(np.ones((1, 1), bool)))
    np.testing.assert_array_equal(found.routes.experts_BTK[0, 0], [2, 1])
    assert found.logits_BTE.dtype == found.routes.weights_BTK.dtype == jnp.float32
    shapes = jax.eval_shape(config.build(4, 4, Precision("bfloat16"), "r").init, KEY, logits, _alone(1))
    types = {name: leaf.dtype for name, leaf in trees.named_leaves(jax.tree.map(lambda x: x, shapes))}
    assert all((dtype == jnp.float32) == ("params/bias" in name) for name, dtype in types.items())


def _alone(tokens):
    return routing.context(np.ones((1, tokens), bool))


def test_products_of_a_router_are_exact_on_accelerators_forward_and_backward():
    config = SoftmaxConfig(2)
    x, own = jnp.asarray(LOGITS), {"params": {"scores": {"kernel": jnp.eye(8)}}}

    def loss(own, x):
        return jnp.sum(config.build(8, 8, MIXED, "r").apply(own, x, routing.context(np.ones((2, 7), bool))).logits_BTE)

    text = jax.jit(jax.grad(loss, (0, 1))).lower(own, x).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products and all("HIGHEST" in line for line in products)


def test_jitter_acts_in_training_only_and_within_its_bounds():
    config = SoftmaxConfig(2, noise=Jitter(0.1))
    still, drawn = route(config, LOGITS), route(config, LOGITS, key=KEY)
    np.testing.assert_array_equal(still.logits_BTE, LOGITS)
    ratio = np.asarray(drawn.logits_BTE) / LOGITS
    assert (ratio >= 0.9).all() and (ratio <= 1.1).all() and ratio.std() == pytest.approx(0.2 / 12**0.5, rel=0.2)


def test_learned_noise_has_the_deviation_that_its_matrix_says():
    config, logits = SoftmaxConfig(1, noise=Noisy()), np.ones((64, 32, 4), np.float32)
    kernel = np.diag([-5.0, 0.0, 2.0, 4.0]).astype(np.float32)
    np.testing.assert_array_equal(route(config, logits, noise={"kernel": kernel}).logits_BTE, logits)
    added = np.asarray(route(config, logits, key=KEY, noise={"kernel": kernel}).logits_BTE) - logits
    np.testing.assert_allclose(added.std((0, 1)), np.log1p(np.exp(np.diag(kernel))), rtol=0.06)
    assert abs(added.mean()) < 0.1


def test_noise_is_learned_from_the_same_deviation_for_all():
    router = SoftmaxConfig(2, noise=Noisy()).build(6, 8, Precision(), "r")
    params = meta.unbox(router.init(KEY, jnp.ones((1, 4, 6)), _alone(4)))["params"]
    assert not params["noise"]["kernel"].any() and params["scores"]["kernel"].all()


@pytest.mark.parametrize("top", [1, 2])
@pytest.mark.parametrize("normalized", [True, False])
def test_the_best_score_is_told_whether_weights_are_normalized_or_not(top, normalized):
    softmax = route(SoftmaxConfig(top, normalized, scale=3.0), LOGITS).routes.best_BT
    np.testing.assert_allclose(softmax, routing.softmax(LOGITS).max(-1), rtol=1e-5)
    sigmoid = route(SigmoidConfig(top, normalized, corrected=False), LOGITS).routes.best_BT
    np.testing.assert_allclose(sigmoid, routing.sigmoid(LOGITS).max(-1), rtol=1e-5)


def test_a_second_choice_is_kept_as_often_as_twice_its_weight():
    config, logits = SoftmaxConfig(2, scale=3.0, random_second=True), np.zeros((100, 40, 2), np.float32)
    logits[..., 0] = np.log(4)  # weights 0.8 and 0.2
    np.testing.assert_allclose(route(config, logits).routes.weights_BTK[0, 0], [2.4, 0.6], rtol=1e-5)
    routes = route(config, logits, key=KEY).routes
    second = np.asarray(routes.weights_BTK[..., 1])
    np.testing.assert_allclose(second[second > 0], 0.6, rtol=1e-5)
    assert (second > 0).mean() == pytest.approx(0.4, abs=0.03)
    np.testing.assert_allclose(routes.weights_BTK[..., 0], 2.4, rtol=1e-5)
    # What is not kept is no choice.
    np.testing.assert_array_equal(load(routes, 2, jnp.ones((100, 40)))[..., 1], second > 0)


def test_the_gradient_of_the_weights_is_that_of_the_formula_and_the_bias_has_none():
    bias = np.linspace(-0.3, 0.3, 8).astype(np.float32)
    experts = routing.chosen(routing.sigmoid(LOGITS) + bias, 2)
    router, context = SigmoidConfig(2).build(8, 8, Precision(), "router"), routing.context(np.ones((2, 7), bool))

    def loss(logits, bias):
        own = {"scores": {"kernel": jnp.eye(8)}, "bias": bias}
        return jnp.sum(router.apply({"params": own}, logits, context).routes.weights_BTK ** 2)

    def expected(logits):
        weights = jnp.take_along_axis(jax.nn.sigmoid(logits), jnp.asarray(experts), -1)
        return jnp.sum((weights / weights.sum(-1, keepdims=True)) ** 2)

    by_logits, by_bias = jax.grad(loss, (0, 1))(jnp.asarray(LOGITS), jnp.asarray(bias))
    np.testing.assert_allclose(by_logits, jax.grad(expected)(jnp.asarray(LOGITS)), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(by_bias, 0)


@pytest.mark.parametrize(
    "config",
    [
        SoftmaxConfig(2),
        SoftmaxConfig(2, bias=True, noise=Noisy()),
        SoftmaxConfig(2, noise=Jitter()),
        SigmoidConfig(2),
        SigmoidConfig(2, corrected=False),
    ],
)
def test_parameters_are_counted(config):
    shapes = jax.eval_shape(config.build(6, 8, Precision(), "r").init, KEY, jnp.zeros((1, 1, 6)), _alone(1))
    assert trees.count(shapes) == config.parameters(6, 8)
    assert config.matrix_flops(6, 8) == 2 * 6 * 8 * (1 + (getattr(config, "noise", None) == Noisy()))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SoftmaxConfig(0), "top is 0"),
        (lambda: SoftmaxConfig(2, scale=0), "scale is 0"),
        (
            lambda: SoftmaxConfig(9).check(8),
            "router.top is 9 and there are 8 experts: it must not exceed the number of experts",
        ),
        (lambda: SigmoidConfig(9).check(8), "router.top is 9 and there are 8 experts"),
        (lambda: SoftmaxConfig(3, random_second=True), "set router.top to 2"),
        (lambda: SoftmaxConfig(2, limit=GroupLimit(3, 2)).check(8), "limit.groups to one of"),
        (lambda: GroupLimit(4, 5), "limit.kept is 5 and limit.groups 4"),
        (lambda: SoftmaxConfig(2, limit=GroupLimit(8, 2, best=2)).check(8), "a group has 1 experts"),
        (lambda: SoftmaxConfig(5, limit=GroupLimit(4, 2)).check(8), "increase limit.kept"),
        (lambda: Jitter(1.0), "noise.amount is 1.0"),
    ],
)
def test_what_cannot_be_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_all_experts_may_be_chosen():
    config = dataclasses.replace(SoftmaxConfig(8), normalized=False)
    config.check(8)
    np.testing.assert_allclose(route(config, LOGITS).routes.weights_BTK.sum(-1), 1, rtol=1e-6)

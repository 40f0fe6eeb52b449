"""Any router with any dispatch is one layer: what the experts of its routes give, or it is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from llm_jax.core import trees
from llm_jax.core.dtypes import Precision
from llm_jax.layers.ffn.balance import BiasUpdate
from llm_jax.layers.ffn.dispatch.capacity import Capacity
from llm_jax.layers.ffn.dispatch.dense import Dense
from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.dispatch.slots import Slots
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.expert_choice import ExpertChoiceConfig
from llm_jax.layers.ffn.routers.fixed import HashConfig, RandomConfig
from llm_jax.layers.ffn.routers.groups import GroupLimit
from llm_jax.layers.ffn.routers.router_scores import Noisy
from llm_jax.layers.ffn.routers.sinkhorn import SinkhornConfig
from llm_jax.layers.ffn.routers.soft import SoftConfig
from llm_jax.layers.ffn.routers.token_choice import SigmoidConfig, SoftmaxConfig
from llm_jax.layers.ffn.routing import Choice
from tests.helpers import routing

BATCH, LENGTH, WIDTH, EXPERTS = 2, 8, 4, 4
X = np.random.default_rng(0).normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
TOKENS = np.random.default_rng(1).integers(0, 9, (BATCH, LENGTH)).astype(np.int32)
REAL = np.arange(LENGTH)[None] < np.array([[8], [5]])
CONTEXT = routing.context(REAL, TOKENS)

ROUTERS = {
    "softmax": SoftmaxConfig(2),
    "noisy second": SoftmaxConfig(2, noise=Noisy(), random_second=True),
    "sigmoid": SigmoidConfig(2, limit=GroupLimit(2, 1)),
    "expert choice": ExpertChoiceConfig(1.5, group=4),
    "hash": HashConfig(2),
    "random": RandomConfig(2),
    "sinkhorn": SinkhornConfig(2),
}
DISPATCHES = {"capacity": Capacity(EXPERTS), "dense": Dense(), "dropless": Dropless()}
FITTING = [
    (router, name) for router in ROUTERS for name, one in DISPATCHES.items() if ROUTERS[router].routes in one.serves
]


def _made(router, dispatch):
    balance = (BiasUpdate(),) if router.has_bias else ()
    config = MoEConfig(EXPERTS, GLUConfig(6), router, dispatch, balance)
    layer = config.build(WIDTH, Precision(), "moe")
    shapes = meta.unbox(jax.eval_shape(layer.init, jax.random.key(0), X, CONTEXT))["params"]
    generator = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: generator.normal(0, 0.7, leaf.shape).astype(np.float32), shapes)
    return config, layer, params


def _expected(routes, params, x):
    """Token by token, choice by choice."""
    y = np.zeros((BATCH, LENGTH, WIDTH))
    gate, up, down = (params["experts"][name]["kernel"].astype(np.float64) for name in ("gate", "up", "down"))

    def served(expert, x_D):
        gates = x_D @ gate[expert]
        return (gates * routing.sigmoid(gates) * (x_D @ up[expert])) @ down[expert]

    if isinstance(routes, Choice):
        for row, place, choice in np.ndindex(routes.experts_BTK.shape):
            expert = int(routes.experts_BTK[row, place, choice])
            y[row, place] += float(routes.weights_BTK[row, place, choice]) * served(expert, x[row, place])
    else:
        for row, group, expert, pick in np.ndindex(routes.places_BGEC.shape):
            place = group * 4 + int(routes.places_BGEC[row, group, expert, pick])
            y[row, place] += float(routes.weights_BGEC[row, group, expert, pick]) * served(expert, x[row, place])
    return y * REAL[..., None]


@pytest.mark.parametrize(("router", "dispatch"), FITTING)
def test_a_layer_is_the_sum_of_what_its_experts_give(router, dispatch):
    config, layer, params = _made(ROUTERS[router], DISPATCHES[dispatch])
    is_router = lambda made, method: made.name == "router" and method == "__call__"  # noqa: E731
    options = {"rngs": {"dropout": jax.random.key(3)}, "capture_intermediates": is_router}
    (y, report), told = jax.jit(lambda x: layer.apply({"params": params}, x, CONTEXT, **options))(X)
    routes = told["intermediates"]["router"]["__call__"][0].routes
    assert type(routes) is config.router.routes
    np.testing.assert_allclose(y, _expected(routes, params, X), rtol=2e-4, atol=1e-5)
    assert report.statistics.dropped == 0 and report.statistics.tokens == REAL.sum()
    assert trees.count(params) == config.parameters(WIDTH)


@pytest.mark.parametrize("router", ROUTERS)
def test_padding_changes_nothing_at_real_tokens(router):
    _, layer, params = _made(ROUTERS[router], Dense())
    rngs = {"dropout": jax.random.key(3)}
    run = jax.jit(lambda x: layer.apply({"params": params}, x, CONTEXT, rngs=rngs))
    (one, told), (two, other) = run(X), run(np.where(REAL[..., None], X, 7.0))
    np.testing.assert_allclose(np.asarray(one)[REAL], np.asarray(two)[REAL], rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), told, other)


@pytest.mark.parametrize("router", [name for name in ROUTERS if name not in ("expert choice",)])
def test_no_token_is_told_of_a_later_one_at_evaluation(router):
    _, layer, params = _made(ROUTERS[router], Dropless())
    run = jax.jit(lambda x: layer.apply({"params": params}, x, CONTEXT)[0])
    later = X.copy()
    later[:, 4:] += 1
    np.testing.assert_allclose(run(X)[:, :4], run(later)[:, :4], rtol=1e-5, atol=1e-6)


PLACELESS = {
    "softmax": SoftmaxConfig(2),
    "softmax, not normalized": SoftmaxConfig(2, normalized=False),
    "sigmoid with bias and groups": SigmoidConfig(2, limit=GroupLimit(2, 1)),
    "hash": HashConfig(2),
}


@pytest.mark.parametrize("dispatch", ["dense", "dropless"])
@pytest.mark.parametrize("router", PLACELESS)
def test_tokens_in_another_order_give_results_in_that_order(router, dispatch):
    _, layer, params = _made(PLACELESS[router], DISPATCHES[dispatch])
    run = jax.jit(lambda x, context: layer.apply({"params": params}, x, context))
    y, told = run(X, CONTEXT)
    order = np.random.default_rng(4).permutation(LENGTH)
    for moved in (np.s_[:, order], np.s_[::-1], np.s_[::-1, order]):
        found, report = run(X[moved], routing.context(REAL[moved], TOKENS[moved]))
        np.testing.assert_allclose(found, np.asarray(y)[moved], rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(report.statistics.load_E, told.statistics.load_E)


@pytest.mark.parametrize("dispatch", ["capacity", "dropless"])
def test_products_of_experts_are_kept_where_products_are(dispatch):
    _, layer, params = _made(ROUTERS["softmax"], DISPATCHES[dispatch])
    total = lambda params: jnp.sum(layer.apply({"params": params}, X, CONTEXT)[0] ** 2)  # noqa: E731

    def kept(*names):
        run = jax.checkpoint(total, policy=jax.checkpoint_policies.save_only_these_names(*names))
        return trees.size_bytes(jax.eval_shape(lambda params: jax.vjp(run, params)[1], params))

    # Of both matrices that read a row, and of that which writes.
    assert kept("product") - kept() >= BATCH * LENGTH * 2 * (2 * 6 + WIDTH) * 4
    assert kept("ffn") - kept() >= BATCH * LENGTH * 2 * 2 * 6 * 4


def test_slots_serve_mixtures_and_nothing_else():
    assert len(FITTING) == len(ROUTERS) * len(DISPATCHES) - 1
    with pytest.raises(ValueError, match="ExpertChoiceConfig returns Picks and dispatch Capacity supports Choice"):
        MoEConfig(EXPERTS, GLUConfig(6), ROUTERS["expert choice"], Capacity())
    with pytest.raises(ValueError, match="SoftmaxConfig returns Choice and dispatch Slots supports SoftAssignment"):
        MoEConfig(EXPERTS, GLUConfig(6), SoftmaxConfig(2), Slots())
    for dispatch in DISPATCHES.values():
        with pytest.raises(ValueError, match="SoftConfig returns SoftAssignment and dispatch"):
            MoEConfig(EXPERTS, GLUConfig(6), SoftConfig(2, LENGTH), dispatch)


@pytest.mark.parametrize("router", [ExpertChoiceConfig(2), SinkhornConfig(), SoftConfig(2, LENGTH)])
def test_routers_that_look_ahead_are_not_causal(router):
    dispatch = Slots() if isinstance(router, SoftConfig) else Dense()
    assert MoEConfig(EXPERTS, GLUConfig(6), router, dispatch).non_causal == (type(router).__name__,)

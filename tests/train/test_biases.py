"""Biases of routers follow the load of the whole batch, and nothing else moves them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax.core import trees
from llm_jax.core.metrics import means
from llm_jax.layers.ffn.balance import SequenceLoss
from llm_jax.layers.ffn.routing_statistics import RoutingMetric, RoutingStatistics
from llm_jax.models.transformer import Transformer
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.train.biases import moved
from llm_jax.train.state import state_of
from llm_jax.train.step import StepConfig, train_step
from tests.helpers import devices, tiny
from tests.helpers.balanced_experts import LAYOUTS, OF_BATCH, RATE, ROUTERS, balanced

PATH = "stack/segment_0/block_0"


def _bias(params):
    return np.asarray(params["stack"]["segment_0"]["block_0"]["ffn"]["router"]["bias"])


def _with_bias(params, bias):
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(bias) if "router" in str(path) and "bias" in str(path) else leaf, params
    )


@functools.cache
def _step(optimizer="adam", accumulate=1, ema=None, rate=RATE):
    model = Transformer(balanced(rate))
    made = {"adam": optax.adam(1e-3), "decaying": optax.adamw(1e-2, weight_decay=5.0)}[optimizer]
    state = state_of(tiny.parameters(model), made, ema is not None)
    update = train_step(model, CausalLMConfig(), made, StepConfig(accumulate, ema), 0)
    return state, jax.jit(update)


def _tallies(load, rate=0.5):
    zero = jnp.zeros(len(load))
    return {
        "experts": RoutingMetric(
            {"a/b": RoutingStatistics(zero, jnp.asarray(load, float), zero, zero, zero, zero, rate)}
        )
    }


def _router(bias):
    return {"a": {"b": {"ffn": {"router": {"bias": jnp.asarray(bias, float)}}}}}


def test_biases_rise_where_there_was_less_than_the_mean_and_fall_where_more():
    # Algorithm 1 of Wang et al.; an even load moves nothing.
    load = [[4, 0, 2, 2], [1, 1, 1, 1]]
    found = moved(_router(np.full((2, 4), 9.0)), _router(np.ones((2, 4))), _tallies(load))
    expected = [[0.5, 1.5, 1, 1], [1, 1, 1, 1]]
    np.testing.assert_array_equal(found["a"]["b"]["ffn"]["router"]["bias"], expected)


def test_a_bias_that_layers_share_follows_the_load_of_all_of_them():
    found = moved(_router(np.zeros(2)), _router(np.zeros(2)), _tallies([[5, 0], [0, 1]]))
    np.testing.assert_array_equal(found["a"]["b"]["ffn"]["router"]["bias"], [-0.5, 0.5])


def test_without_a_rate_parameters_are_what_the_optimizer_made_them():
    params = _router(np.full((1, 2), 9.0))
    assert moved(params, _router(np.zeros((1, 2))), _tallies([[5, 0]], rate=None)) is params


def test_nothing_else_moves_them_and_the_average_follows():
    state, step = _step("decaying", ema=0.75)
    start = _with_bias(state.params, np.tile(np.array([0.5, 0, 0, 0], np.float32), (2, 1)))
    state = state.replace(params=start, ema=start)
    after, report = step(state, tiny.batch(8))
    load = np.asarray(report.metrics["experts"].layers[PATH].load_E)
    expected = _bias(start) + RATE * np.sign(load.mean(1, keepdims=True) - load)
    np.testing.assert_allclose(_bias(after.params), expected, atol=1e-7)
    np.testing.assert_allclose(_bias(after.ema), 0.75 * _bias(start) + 0.25 * expected, atol=1e-6)
    assert load.sum() == 2 * 2 * (tiny.batch(8).inputs.sequence.segment_ids_BT != 0).sum()
    assert _bias(report.gradient_norms) == 0


def test_the_load_is_that_of_all_microbatches():
    state, step = _step()
    _, accumulated = _step(accumulate=4)
    batch = tiny.batch(8)
    one, four = step(state, batch), accumulated(state, batch)
    np.testing.assert_array_equal(_bias(one[0].params), _bias(four[0].params))
    np.testing.assert_array_equal(*(found[1].metrics["experts"].layers[PATH].load_E for found in (one, four)))


def test_losses_of_the_batch_are_those_of_all_microbatches():
    state, step = _step()
    batch = tiny.batch(8)
    # Microbatches differ in how many tokens and targets count.
    assert len({int(batch.loss_weights_BT[part::4].sum()) for part in range(4)}) > 1

    def gradient(step):
        after, report = step(state, batch)
        # Adam's first mean of gradients is a tenth of the first gradient.
        return dict(trees.named_leaves(after.opt_state[0].mu)), means(report.metrics)["balance_loss"]

    (expected, loss), (actual, seen) = gradient(step), gradient(_step(accumulate=4)[1])
    assert seen == pytest.approx(loss, rel=1e-5)
    for name, leaf in expected.items():
        np.testing.assert_allclose(actual[name], leaf, rtol=1e-4, atol=1e-7, err_msg=name)


class BackwardInputs(CausalLMConfig):
    """Notes the batch that each microbatch's losses are computed over, other than its own."""

    seen = set()

    def loss(self, model, params, batch, key=None, whole=None):
        self.seen.update(whole or ())
        return super().loss(model, params, batch, key, whole)


@pytest.mark.parametrize(
    ("balance", "over"),
    [
        (OF_BATCH, "microbatch"),
        # Losses of rows need no batch, and no forward pass for it.
        ((SequenceLoss(),), "batch"),
    ],
)
def test_losses_are_told_of_no_batch_where_they_are_not_of_it(balance, over):
    BackwardInputs.seen.clear()
    model, optimizer = Transformer(balanced(RATE, balance)), optax.sgd(1.0)
    state = jax.eval_shape(lambda: state_of(tiny.parameters(model), optimizer, False))
    jax.eval_shape(
        train_step(model, BackwardInputs(), optimizer, StepConfig(4, balance_over=over), 0), state, tiny.batch(8)
    )
    assert not BackwardInputs.seen


def test_an_update_that_is_not_finite_moves_nothing():
    state, step = _step()
    broken = jax.tree.map(lambda leaf: leaf * jnp.inf, state.params["embed"])
    state = state.replace(params=state.params | {"embed": broken})
    after, report = step(state, tiny.batch(8))
    assert not report.finite
    np.testing.assert_array_equal(_bias(after.params), _bias(state.params))


def test_experts_that_get_all_tokens_lose_them():
    state, step = _step(rate=0.05)
    state = state.replace(params=_with_bias(state.params, np.tile(np.array([2, 1, 0, 0], np.float32), (2, 1))))
    loads, losses = [], []
    for number in range(60):
        state, report = step(state, tiny.batch(16, seed=number))
        seen = means(report.metrics)
        loads.append(seen["experts/max_load"])
        losses.append(seen["loss"])
    assert loads[0] > 1.9 and np.mean(loads[-5:]) < 1.35
    assert np.isfinite(losses).all()


@pytest.fixture(scope="module")
def on_eight_devices():
    return devices.printed(devices.run("balanced_experts"))


@pytest.mark.slow
def test_layers_of_every_router_are_the_same_where_rows_are_divided(on_eight_devices):
    found = on_eight_devices["routed"]
    assert len(found) == len(ROUTERS)
    assert max(found.values()) < 1e-5, found


@pytest.mark.slow
def test_biases_are_the_same_however_devices_divide_the_batch(on_eight_devices):
    found = on_eight_devices
    one = np.array(found["one"]["bias"])
    assert one.min() < -RATE / 2 and one.max() > RATE / 2
    for name in LAYOUTS:
        np.testing.assert_allclose(found[name]["bias"], one, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(np.array(found[name]["load"]), found["one"]["load"], err_msg=name)


@pytest.mark.slow
def test_losses_of_the_batch_are_the_same_however_devices_divide_it(on_eight_devices):
    one = on_eight_devices["one"]
    for name in LAYOUTS:
        found = on_eight_devices[name]
        assert (found["loss"], found["gradient"]) == pytest.approx((one["loss"], one["gradient"]), rel=1e-4), name

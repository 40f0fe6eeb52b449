"""One update: what it computes, what it refuses, what it costs.

Most of it is seen on a toy objective whose gradients are known; the transformer stands for the rest.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax.core import rng, trees
from llm_jax.core.dtypes import Precision
from llm_jax.core.metrics import Ratio, means
from llm_jax.models.transformer import Transformer
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.optim import AdamWConfig
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.rules import DataParallel, ShardingConfig
from llm_jax.train.programs import programs
from llm_jax.train.state import EvaluationWeights, TrainState, initial_state
from llm_jax.train.step import StepConfig, evaluation_step, train_step
from tests.helpers import tiny


@flax.struct.dataclass
class Numbers:
    """The toy's batch."""

    x_BD: Any
    weights_B: Any


class Toy:
    """loss = sum over rows of weight * (w . x + b), so that the gradients are sums of the inputs."""

    def loss(self, model: None, params: Any, batch: Numbers, key: jax.Array) -> tuple[jax.Array, dict[str, Ratio]]:
        values = batch.x_BD @ params["w"] + params["b"]
        loss = Ratio.of(values, batch.weights_B)
        return loss.total, {"loss": loss}


class Noisy(Toy):
    """As Toy, with each row's input multiplied by what the key says."""

    def loss(self, model: None, params: Any, batch: Numbers, key: jax.Array) -> tuple[jax.Array, dict[str, Ratio]]:
        noise = jax.random.uniform(key, batch.x_BD.shape)
        return super().loss(model, params, batch.replace(x_BD=batch.x_BD * noise), key)


BATCH = Numbers(np.arange(8, dtype=np.float32).reshape(4, 2), np.array([1, 0, 1, 2], np.float32))
MEAN = np.average(BATCH.x_BD, axis=0, weights=BATCH.weights_B)


def _toy_state(optimizer: optax.GradientTransformation, ema: bool = False) -> TrainState:
    params = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), params if ema else None)


def _toy_step(optimizer: optax.GradientTransformation, config: StepConfig | None = None, noisy=False, seed=0) -> Any:
    return jax.jit(train_step(None, Noisy() if noisy else Toy(), optimizer, config or StepConfig(), seed))


def _same(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_gradient_is_that_of_the_mean_over_counted_tokens():
    optimizer = optax.sgd(0.1)
    state, report = _toy_step(optimizer)(_toy_state(optimizer), BATCH)
    np.testing.assert_allclose(state.params["w"], np.array([1, -2]) - 0.1 * MEAN, rtol=1e-6)
    np.testing.assert_allclose(state.params["b"], 0.5 - 0.1, rtol=1e-6)
    assert state.step == 1 and state.step.dtype == jnp.int32
    np.testing.assert_allclose(report.gradient_norms["w"], np.linalg.norm(MEAN), rtol=1e-6)
    np.testing.assert_allclose(report.gradient_norms["b"], 1.0, rtol=1e-6)
    assert report.finite
    assert means(report.metrics)["loss"] == pytest.approx(float(MEAN @ [1, -2] + 0.5), rel=1e-6)
    assert float(report.metrics["loss"].count) == BATCH.weights_B.sum()


@pytest.mark.parametrize("accumulate", [2, 4])
def test_microbatches_of_unequal_weight_make_the_same_update(accumulate):
    optimizer = optax.sgd(0.1)
    whole, report = _toy_step(optimizer)(_toy_state(optimizer), BATCH)
    parts, parts_report = _toy_step(optimizer, StepConfig(accumulate))(_toy_state(optimizer), BATCH)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), parts, whole)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), parts_report, report)


def test_a_batch_that_counts_nothing_changes_nothing_by_itself():
    optimizer = optax.sgd(0.1)
    start = _toy_state(optimizer)
    state, report = _toy_step(optimizer)(start, BATCH.replace(weights_B=np.zeros(4, np.float32)))
    assert report.finite
    _same(state.params, start.params)


def test_average_of_weights():
    optimizer, decay = optax.sgd(0.1), 0.75
    update = _toy_step(optimizer, StepConfig(ema_decay=decay))
    state = _toy_state(optimizer, ema=True)
    expected = np.array([1.0, -2.0])
    for _ in range(3):
        state, _ = update(state, BATCH)
        expected = decay * expected + (1 - decay) * np.asarray(state.params["w"])
        np.testing.assert_allclose(state.ema["w"], expected, rtol=1e-5)
    assert not np.allclose(state.ema["w"], state.params["w"], rtol=0.01)


def _with(batch: Numbers, value: float) -> Numbers:
    x_BD = np.array(batch.x_BD)
    x_BD[3, 1] = value
    return batch.replace(x_BD=x_BD)


@pytest.mark.parametrize(("accumulate", "value"), [(1, np.nan), (1, -np.inf), (4, np.inf)])
def test_an_update_that_is_not_finite_is_not_made(accumulate, value):
    optimizer = optax.adam(0.1)
    update = _toy_step(optimizer, StepConfig(accumulate, ema_decay=0.5))
    before, _ = update(_toy_state(optimizer, ema=True), BATCH)
    after, report = update(before, _with(BATCH, value))
    assert not report.finite
    _same(after, before)
    norms = {name: bool(np.isfinite(norm)) for name, norm in trees.named_leaves(report.gradient_norms)}
    assert norms == {"w": False, "b": True}
    again, report = update(after, BATCH)
    assert report.finite and again.step == 2


def test_a_weight_that_is_not_finite_stops_the_update_and_stays_where_it_is():
    optimizer = optax.adam(0.1)
    start = _toy_state(optimizer)
    start = start.replace(params=start.params | {"b": jnp.array(np.nan)})
    state, report = _toy_step(optimizer)(start, BATCH)
    assert not report.finite
    _same(state, start)


def test_keys_depend_on_seed_and_step_alone():
    optimizer = optax.sgd(0.1)
    update, start = _toy_step(optimizer, noisy=True), _toy_state(optimizer)
    first, again = update(start, BATCH)[0].params["w"], update(start, BATCH)[0].params["w"]
    _same(first, again)
    later = update(start.replace(step=jnp.int32(1)), BATCH)[0].params["w"]
    other_seed = _toy_step(optimizer, noisy=True, seed=1)(start, BATCH)[0].params["w"]
    assert len({tuple(np.asarray(w)) for w in (first, later, other_seed)}) == 3
    noise = jax.random.uniform(rng.key(0, "dropout", 0), BATCH.x_BD.shape)
    expected = np.array([1, -2]) - 0.1 * np.average(BATCH.x_BD * noise, axis=0, weights=BATCH.weights_B)
    np.testing.assert_allclose(first, expected, rtol=1e-6)


def test_microbatches_do_not_share_their_noise():
    optimizer = optax.sgd(1.0)
    rows = Numbers(np.ones((2, 2), np.float32), np.array([1, -1], np.float32))
    state, _ = _toy_step(optimizer, StepConfig(accumulate=2), noisy=True)(_toy_state(optimizer), rows)
    assert np.abs(np.asarray(state.params["w"]) - [1, -2]).min() > 1e-3  # equal noise would cancel


@pytest.mark.parametrize(("accumulate", "params"), [(1, "float32"), (2, "bfloat16")])
def test_types_and_shapes_of_the_state_stay(accumulate, params):
    # A type that changes in the first update means a second compilation, and a checkpoint that does not fit.
    model, optimizer = Transformer(tiny.tiny_llama(), Precision(params, "bfloat16")), optax.adamw(1e-2)
    config = StepConfig(accumulate, ema_decay=0.9)
    before = jax.eval_shape(lambda: initial_state(model, optimizer, 0, ema=True))
    step = train_step(model, CausalLMConfig(), optimizer, config, seed=0)
    after, report = jax.eval_shape(step, before, tiny.batch(4))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), before
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(report.gradient_norms)} == {np.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(before.ema)} == {np.dtype("float32")}


@dataclasses.dataclass
class Trained:
    """A tiny LLaMA with dropout nowhere, its compiled step, and a fresh state."""

    accumulate: int

    def __post_init__(self):
        self.model = Transformer(tiny.tiny_llama())
        self.optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2))
        config = StepConfig(self.accumulate, ema_decay=0.9)
        step = train_step(self.model, CausalLMConfig(chunks=2, z_loss=1e-3), self.optimizer, config, seed=0)
        self.step = jax.jit(step, donate_argnums=0)

    def state(self) -> TrainState:
        params = tiny.parameters(self.model)
        average = jax.tree.map(jnp.copy, params)
        return TrainState(jnp.zeros((), jnp.int32), params, self.optimizer.init(params), average)


@pytest.fixture(scope="module")
def whole():
    return Trained(accumulate=1)


def test_a_transformer_learns_its_batch_without_being_compiled_again(whole):
    state, batch, losses = whole.state(), tiny.batch(8), []
    for step in range(8):
        state, report = whole.step(state, jax.tree.map(jnp.asarray, batch))
        losses.append(means(report.metrics)["loss"])
        assert state.step == step + 1
    assert all(later < earlier for earlier, later in zip(losses, losses[1:], strict=False))
    assert losses[-1] < losses[0] - 0.5
    assert whole.step._cache_size() == 1


def test_accumulation_makes_the_same_update_of_a_transformer(whole):
    parts = Trained(accumulate=4)
    assert parts.accumulate != whole.accumulate
    # Rows differ in how many targets count, so a mean of means would be another number.
    batch = tiny.batch(8)
    assert len(set(batch.loss_weights_BT.sum(axis=1))) > 1
    one, report = whole.step(whole.state(), batch)
    other, parts_report = parts.step(parts.state(), batch)
    assert means(parts_report.metrics) == pytest.approx(means(report.metrics), rel=1e-5)
    for (name, norm), (_, expected) in zip(
        trees.named_leaves(parts_report.gradient_norms), trees.named_leaves(report.gradient_norms), strict=True
    ):
        np.testing.assert_allclose(norm, expected, rtol=1e-4, atol=1e-7, err_msg=name)
    moved = [
        np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (one.params, whole.state().params)), strict=True)
    ]
    assert min(moved) > 1e-4
    for (name, leaf), (_, expected) in zip(trees.named_leaves(other), trees.named_leaves(one), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-3, atol=1e-5, err_msg=name)


def test_the_old_state_is_donated(whole):
    state = whole.state()
    new, _ = whole.step(state, tiny.batch(8))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))


def test_evaluation_is_the_objective_without_dropout():
    model = Transformer(tiny.tiny_gpt2(dropout=0.5))
    params, batch = tiny.parameters(model), tiny.batch(4)
    evaluate = jax.jit(evaluation_step(model, CausalLMConfig()))
    plain = jax.jit(lambda params: CausalLMConfig().loss(Transformer(tiny.tiny_gpt2()), params, batch)[1])
    assert means(evaluate(EvaluationWeights(params), batch)) == pytest.approx(means(plain(params)), rel=1e-6)


class Watched(CausalLMConfig):
    """Notes how many rows it is given at a time."""

    rows = set()

    def loss(self, model, params, batch, *given, **named):
        self.rows.add(len(batch.inputs.tokens_BT))
        return super().loss(model, params, batch, *given, **named)


def test_an_evaluation_takes_as_many_rows_at_a_time_as_an_update():
    """And gives the same: rows differ in how many targets count."""
    model, batch = Transformer(tiny.tiny_llama()), tiny.batch(8)
    layout = Layout.of(ShardingConfig(MeshConfig(data=1), DataParallel()), jax.devices()[:1])
    made = [
        programs(model, Watched(), AdamWConfig(peak_lr=1e-3), StepConfig(parts), layout, 2, seed=0) for parts in (4, 1)
    ]
    params = tiny.parameters(model)
    told = []
    for one, rows in zip(made, (2, 8), strict=True):
        Watched.rows.clear()
        with one.activated():
            told.append(means(one.evaluate(EvaluationWeights(params), batch)))
        assert Watched.rows == {rows}
    assert told[0] == pytest.approx(told[1], rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"balance_over": "rows"}, "balance_over is 'rows'"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"ema_decay": 1.5}, "ema_decay is 1.5: it must lie between 0 and 1"),
        ({"ema_decay": -0.1}, "ema_decay is -0.1"),
    ],
)
def test_bad_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        StepConfig(**change)

"""One update: gradients over microbatches, clipping and optimizer, moving average, finiteness.

Legend: B batch, T length.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from llm_jax.core import rng
from llm_jax.core.checks import check_fraction, check_one_of, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.core.metrics import Metrics, Ratio, metric_of
from llm_jax.layers.ffn.routing_statistics import BalanceLoss
from llm_jax.models.build import Model
from llm_jax.objectives.objective import AnyBatch, Objective
from llm_jax.optim.schedules import Rate
from llm_jax.train.biases import moved
from llm_jax.train.state import TrainState


@flax.struct.dataclass
class StepReport:
    """What a step tells the host.

    Attributes:
      metrics: sums and counts of the objective.
      gradient_norms: tree of float32 scalars, the norm of each parameter's gradient before clipping.
      finite: boolean; where false the loss or a gradient was not finite and the update was not applied.
      learning_rate: float32 scalar, the rate of this update; None where the step was made without a schedule.
    """

    metrics: Metrics
    gradient_norms: Any
    finite: jax.Array
    learning_rate: jax.Array | None = None


class StepShardings(NamedTuple):
    """Trees of shardings."""

    gradients: Any
    opt_state: Any


@configclass
class StepConfig:
    """How an update is made from a batch."""

    accumulate: int = 1
    """Microbatches whose gradients are summed before the update; the result is that of the whole batch. An evaluation
    takes as many."""
    ema_decay: float | None = None
    """Decay of a moving average of the weights, kept beside them and evaluated in their place; None keeps none."""
    balance_over: Literal["batch", "microbatch"] = "batch"
    """Of which tokens losses such as `LoadLoss` even out the load, where the batch is cut into microbatches or divided
    by jax.pmap. `batch`: of all; the load is found by another forward pass before. `microbatch`: of those that a
    program sees at once, without that pass: another loss, for a load that is even in each microbatch (Qiu et al. 2025,
    arXiv:2501.11873, section 3). Megatron-LM's `aux_loss` is that of a microbatch of one data-parallel rank, as here
    under jax.pmap; where one program spans the devices, a microbatch is that of all."""

    def __post_init__(self):
        check_positive(accumulate=self.accumulate)
        check_one_of("balance_over", self.balance_over, ("batch", "microbatch"))
        if self.ema_decay is not None:
            check_fraction(ema_decay=self.ema_decay)


def train_step(
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    config: StepConfig,
    seed: int,
    places: StepShardings | None = None,
    axis: str | None = None,
    rate: Rate | None = None,
) -> Callable[[TrainState, AnyBatch], tuple[TrainState, StepReport]]:
    """The pure update function (state, batch) -> (state, report), to be compiled with the state donated.

    Args:
      places: where gradients and the optimizer's state lie while they are used; None: wherever they are.
      axis: name of the axis of `jax.pmap` over which the batch is divided; None: the function sees all of it.
      rate: the schedule, for the report: the host would wait for the device to evaluate it between two updates.

    An update that is not finite leaves the state as it was, so that what is saved afterwards is sound.
    """

    gradients = _summed_gradients(model, objective, config, places, axis)

    def step(state: TrainState, batch: AnyBatch) -> tuple[TrainState, StepReport]:
        key = rng.key(seed, "dropout", state.step)
        learning_rate = None if rate is None else jnp.asarray(rate(state.step), jnp.float32)
        if places is not None:
            state = dataclasses.replace(state, opt_state=jax.device_put(state.opt_state, places.opt_state))
        if axis is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        gradient, metrics = gradients(state.params, batch, key)
        # The loss is a sum; its mean over all counted tokens is what one large batch would have.
        loss = metric_of(metrics, "loss", Ratio)
        counted = jnp.maximum(loss.count, 1)
        gradient = jax.tree.map(lambda g, p: (g / counted).astype(p.dtype), gradient, state.params)
        # Not a norm of g.reshape(-1), for which a divided gradient would be gathered whole on every device.
        norms = jax.tree.map(lambda g: jnp.sqrt(jnp.sum(jnp.square(g.astype(jnp.float32)))), gradient)
        finite = jnp.isfinite(loss.total) & jnp.isfinite(optax.tree.norm(norms))
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = moved(optax.apply_updates(state.params, updates), state.params, metrics)
        ema = state.ema
        if (decay := config.ema_decay) is not None:
            ema = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), ema, params)
        updated = TrainState(state.step + 1, params, opt_state, ema)
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
        return state, StepReport(metrics, norms, finite, learning_rate)

    return step


def evaluation_step(model: Model, objective: Objective, microbatches: int = 1) -> Callable[[Any, AnyBatch], Metrics]:
    """The pure function (params, batch) -> metrics, which runs the batch in this number of parts, in turn."""

    def step(params: Any, batch: AnyBatch) -> Metrics:
        return _summed(lambda batch, key: objective.loss(model, params, batch)[1], microbatches, batch, None)

    return step


def _summed_gradients(
    model: Model, objective: Objective, config: StepConfig, places: StepShardings | None, axis: str | None
) -> Callable[[Any, AnyBatch, jax.Array], tuple[Any, Metrics]]:
    """(params, batch, key) -> gradients and metrics, sums over all tokens of the batch."""

    def laid(found: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
        return found if places is None else (jax.lax.with_sharding_constraint(found[0], places.gradients), found[1])

    def over_devices(sums: Any) -> Any:
        return sums if axis is None else jax.lax.psum(sums, axis)

    def gradients(params: Any, batch: AnyBatch, key: jax.Array) -> tuple[Any, Metrics]:
        divided, given = config.accumulate > 1 or axis is not None, {}
        if divided and config.balance_over == "batch":

            def balance(batch: AnyBatch, key: jax.Array | None) -> Metrics:
                return _of_batch(objective.loss(model, params, batch, key)[1])

            whole = over_devices(_summed(balance, config.accumulate, batch, key))
            given = {"whole": whole} if whole else {}

        def part(batch: AnyBatch, key: jax.Array | None) -> tuple[Any, Metrics]:
            loss = lambda params: objective.loss(model, params, batch, key, **given)  # noqa: E731
            (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
            return gradient, metrics

        return over_devices(_summed(part, config.accumulate, batch, key, laid))

    return gradients


def _of_batch(metrics: Metrics) -> Metrics:
    """The metrics that hold losses of the batch as a whole."""
    found = {name: metric for name, metric in metrics.items() if isinstance(metric, BalanceLoss)}
    return {name: metric for name, metric in found.items() if any(layer.losses for layer in metric.layers.values())}


def _summed(
    function: Callable[[AnyBatch, jax.Array | None], Any],
    microbatches: int,
    batch: AnyBatch,
    key: jax.Array | None,
    laid: Callable[[Any], Any] = lambda sums: sums,
) -> Any:
    """Sums in float32 over microbatches of `function`, a tree of sums, one microbatch after the other.

    Args:
      key: None: the function draws nothing.
      laid: where the sums lie.
    """
    if microbatches == 1:
        return laid(function(batch, key))

    def one(sums: Any, item: tuple[AnyBatch, jax.Array | None]) -> tuple[Any, None]:
        return laid(jax.tree.map(lambda sum, part: sum + part.astype(jnp.float32), sums, function(*item))), None

    parts = jax.tree.map(lambda x: _interleave(x, microbatches), batch)
    keys = None if key is None else jax.random.split(key, microbatches)
    shapes = jax.eval_shape(function, *jax.tree.map(lambda x: x[0], (parts, keys)))
    if not jax.tree.leaves(shapes):
        return shapes
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)
    return jax.lax.scan(one, laid(zeros), (parts, keys))[0]


def _interleave(x: jax.Array, parts: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...], taking every parts-th row, so that each part stays spread over devices."""
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)

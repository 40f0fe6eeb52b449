"""One training step: gradients over microbatches, clipping and optimizer, moving average, finiteness.

Legend: B batch, T length.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
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
from llm_jax.objectives.objective import AnyBatch, NamedModel, Objective
from llm_jax.optim.schedules import Rate
from llm_jax.train.biases import moved
from llm_jax.train.state import EvaluationWeights, TrainState


@flax.struct.dataclass
class StepReport:
    """Outputs of a step for the host.

    Attributes:
      metrics: sums and counts of the objective.
      gradient_norms: tree of float32 scalars, the norm of each parameter's gradient before clipping.
      finite: boolean; False if the loss or a gradient was not finite, so that the update was not applied.
      learning_rate: float32 scalar, the rate of this step; None if the step has no schedule.
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
    """How a training step is computed from a batch."""

    accumulate: int = 1
    """Number of microbatches whose gradients are summed before the update. The result is that of the whole batch.
    Evaluation uses the same number."""
    ema_decay: float | None = None
    """Decay of a moving average of the weights, which is evaluated instead of the weights; None: no average."""
    balance_over: Literal["batch", "microbatch"] = "batch"
    """The tokens over which losses such as `LoadLoss` balance the load, if the batch is split into microbatches or by
    jax.pmap. `batch`: all tokens; the load is computed by an extra forward pass before. `microbatch`: the tokens that
    one call of the loss sees, without the extra pass. This is another loss, which balances the load in each microbatch
    (Qiu et al. 2025, arXiv:2501.11873, section 3). Megatron-LM's `aux_loss` is that of a microbatch of one
    data-parallel rank, as here under jax.pmap. Otherwise a microbatch spans all devices."""

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
    frozen: Mapping[str, Model] = MappingProxyType({}),
) -> Callable[[TrainState, AnyBatch], tuple[TrainState, StepReport]]:
    """The pure step function (state, batch) -> (state, report). Compile it with the state donated.

    Args:
      places: shardings of gradients and optimizer state during the step; None: no constraint.
      axis: name of the `jax.pmap` axis over which the batch is divided; None: the function sees the whole batch.
      rate: the schedule, for the report. Computed in the step, because evaluating it on the host between two steps
        would wait for the device.
      frozen: the models of `TrainState.frozen`, which the objective runs by name.

    If the loss or a gradient is not finite, the state is returned unchanged, so that a later save is valid.
    """

    gradients = _summed_gradients(model, objective, config, places, axis, frozen)

    def step(state: TrainState, batch: AnyBatch) -> tuple[TrainState, StepReport]:
        key = rng.key(seed, "dropout", state.step)
        learning_rate = None if rate is None else jnp.asarray(rate(state.step), jnp.float32)
        if places is not None:
            # From host memory, where it is between steps if it is offloaded; otherwise a no-op.
            state = dataclasses.replace(state, opt_state=jax.device_put(state.opt_state, places.opt_state))
        if axis is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        # Gradient of the sum of losses over all targets of the batch.
        gradient, metrics = gradients(EvaluationWeights(state.params, state.frozen), batch, key)
        # The loss is a sum. Dividing by all counted tokens gives the mean of the whole batch, as without microbatches.
        loss = metric_of(metrics, "loss", Ratio)
        # A batch without targets has a sum of 0 and no gradient, not a division by zero.
        counted = jnp.maximum(loss.count, 1)
        gradient = jax.tree.map(lambda g, p: (g / counted).astype(p.dtype), gradient, state.params)
        # No norm of g.reshape(-1): for that a sharded gradient would be all-gathered on every device.
        norms = jax.tree.map(lambda g: jnp.sqrt(jnp.sum(jnp.square(g.astype(jnp.float32)))), gradient)
        # A NaN or an infinity in a gradient is one in its norm.
        finite = jnp.isfinite(loss.total) & jnp.isfinite(optax.tree.norm(norms))
        # Clipping, direction, weight decay and learning rate are one optax transformation (optim/optimizers.py).
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = moved(optax.apply_updates(state.params, updates), state.params, metrics)
        ema = state.ema
        if (decay := config.ema_decay) is not None:
            # In float32: with a decay near 1 an increment is smaller than a digit of bfloat16.
            ema = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), ema, params)
        updated = TrainState(state.step + 1, params, opt_state, ema)
        # Selected on the device: the host learns only later whether the step was finite, and may have dispatched the
        # next one.
        trained = dataclasses.replace(state, frozen={})
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, trained)
        return dataclasses.replace(kept, frozen=state.frozen), StepReport(metrics, norms, finite, learning_rate)

    return step


def evaluation_step(
    model: Model, objective: Objective, microbatches: int = 1, frozen: Mapping[str, Model] = MappingProxyType({})
) -> Callable[[EvaluationWeights, AnyBatch], Metrics]:
    """The pure function (weights, batch) -> metrics. It evaluates the microbatches one after the other."""

    def step(weights: EvaluationWeights, batch: AnyBatch) -> Metrics:
        beside = _beside(frozen, weights)
        return _summed(
            lambda batch, key: objective.loss(model, weights.params, batch, **beside)[1], microbatches, batch, None
        )

    return step


def _beside(frozen: Mapping[str, Model], weights: EvaluationWeights) -> dict[str, Any]:
    """The argument `models` of a loss. Without frozen models there is none, so that a loss need not have it."""
    models = {name: NamedModel(model, weights.frozen[name]) for name, model in frozen.items()}
    return {"models": models} if models else {}


def _summed_gradients(
    model: Model,
    objective: Objective,
    config: StepConfig,
    places: StepShardings | None,
    axis: str | None,
    frozen: Mapping[str, Model],
) -> Callable[[EvaluationWeights, AnyBatch, jax.Array], tuple[Any, Metrics]]:
    """Returns (weights, batch, key) -> gradients and metrics, which are sums over all tokens of the batch."""

    def laid(found: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
        return found if places is None else (jax.lax.with_sharding_constraint(found[0], places.gradients), found[1])

    def over_devices(sums: Any) -> Any:
        return sums if axis is None else jax.lax.psum(sums, axis)

    def gradients(weights: EvaluationWeights, batch: AnyBatch, key: jax.Array) -> tuple[Any, Metrics]:
        beside, given = _beside(frozen, weights), {}
        divided = config.accumulate > 1 or axis is not None
        if divided and config.balance_over == "batch":
            # The same key as below, so that dropout and router noise, and with them the load, are those of the loss.
            # The compiler removes what these sums do not need, such as the head.
            def balance(batch: AnyBatch, key: jax.Array | None) -> Metrics:
                return _of_batch(objective.loss(model, weights.params, batch, key, **beside)[1])

            whole = over_devices(_summed(balance, config.accumulate, batch, key))
            given = {"whole": whole} if whole else {}

        def part(batch: AnyBatch, key: jax.Array | None) -> tuple[Any, Metrics]:
            loss = lambda params: objective.loss(model, params, batch, key, **given, **beside)  # noqa: E731
            (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(weights.params)
            return gradient, metrics

        return over_devices(_summed(part, config.accumulate, batch, key, laid))

    return gradients


def _of_batch(metrics: Metrics) -> Metrics:
    """The metrics with losses that are computed over the whole batch."""
    found = {name: metric for name, metric in metrics.items() if isinstance(metric, BalanceLoss)}
    return {name: metric for name, metric in found.items() if any(layer.losses for layer in metric.layers.values())}


def _summed(
    function: Callable[[AnyBatch, jax.Array | None], Any],
    microbatches: int,
    batch: AnyBatch,
    key: jax.Array | None,
    laid: Callable[[Any], Any] = lambda sums: sums,
) -> Any:
    """The tree `function(microbatch, key)`, summed in float32 over the microbatches by a scan.

    Args:
      key: None if the function uses no randomness.
      laid: applies a sharding constraint to the sums.
    """
    if microbatches == 1:
        return laid(function(batch, key))

    def one(sums: Any, item: tuple[AnyBatch, jax.Array | None]) -> tuple[Any, None]:
        return laid(jax.tree.map(lambda sum, part: sum + part.astype(jnp.float32), sums, function(*item))), None

    # A scan, so that one microbatch's activations are in memory at a time.
    parts = jax.tree.map(lambda x: _interleave(x, microbatches), batch)
    keys = None if key is None else jax.random.split(key, microbatches)
    shapes = jax.eval_shape(function, *jax.tree.map(lambda x: x[0], (parts, keys)))
    if not jax.tree.leaves(shapes):
        return shapes
    # The constraint on the carry keeps the sum of gradients sharded in every iteration.
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)
    return jax.lax.scan(one, laid(zeros), (parts, keys))[0]


def _interleave(x: jax.Array, parts: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...] by every parts-th row, so that each part stays sharded over all devices."""
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)

"""One update: gradients over microbatches, clipping and optimizer, moving average, finiteness.

Legend: B batch, T length.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from llm_jax.core import rng
from llm_jax.core.checks import check_fraction, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.core.metrics import Metrics, add
from llm_jax.data.batch import Batch
from llm_jax.models.transformer import Transformer
from llm_jax.objectives.causal_lm import CausalLMConfig
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


class Places(NamedTuple):
    """Trees of shardings."""

    gradients: Any
    opt_state: Any


@configclass
class StepConfig:
    """How an update is made from a batch."""

    accumulate: int = 1
    """Microbatches whose gradients are summed before the update; the result is that of the whole batch."""
    ema_decay: float | None = None
    """Decay of a moving average of the weights, kept beside them and evaluated in their place; None keeps none."""

    def __post_init__(self):
        check_positive(accumulate=self.accumulate)
        if self.ema_decay is not None:
            check_fraction(ema_decay=self.ema_decay)


def train_step(
    model: Transformer,
    objective: CausalLMConfig,
    optimizer: optax.GradientTransformation,
    config: StepConfig,
    seed: int,
    places: Places | None = None,
    axis: str | None = None,
    rate: Rate | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepReport]]:
    """The pure update function (state, batch) -> (state, report), to be compiled with the state donated.

    Args:
      places: where gradients and the optimizer's state lie while they are used; None: wherever they are.
      axis: name of the axis of `jax.pmap` over which the batch is divided; None: the function sees all of it.
      rate: the schedule, for the report: the host would wait for the device to evaluate it between two updates.

    An update that is not finite leaves the state as it was, so that what is saved afterwards is sound.
    """

    gradients = _summed_gradients(model, objective, config.accumulate, places)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepReport]:
        key = rng.key(seed, "dropout", state.step)
        learning_rate = None if rate is None else jnp.asarray(rate(state.step), jnp.float32)
        if places is not None:
            state = state.replace(opt_state=jax.device_put(state.opt_state, places.opt_state))
        if axis is None:
            gradient, metrics = gradients(state.params, batch, key)
        else:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
            gradient, metrics = jax.lax.psum(gradients(state.params, batch, key), axis)
        # The loss is a sum; its mean over all counted tokens is what one large batch would have.
        counted = jnp.maximum(metrics["loss"].count, 1)
        gradient = jax.tree.map(lambda g, p: (g / counted).astype(p.dtype), gradient, state.params)
        # Not a norm of g.reshape(-1), for which a divided gradient would be gathered whole on every device.
        norms = jax.tree.map(lambda g: jnp.sqrt(jnp.sum(jnp.square(g.astype(jnp.float32)))), gradient)
        finite = jnp.isfinite(metrics["loss"].total) & jnp.isfinite(optax.tree.norm(norms))
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = moved(optax.apply_updates(state.params, updates), state.params, metrics)
        ema = state.ema
        if config.ema_decay is not None:
            ema = jax.tree.map(lambda old, new: old + (1 - config.ema_decay) * (new - old), ema, params)
        updated = TrainState(state.step + 1, params, opt_state, ema)
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
        return state, StepReport(metrics, norms, finite, learning_rate)

    return step


def evaluation_step(model: Transformer, objective: CausalLMConfig) -> Callable[[Any, Batch], Metrics]:
    """The pure function (params, batch) -> metrics."""
    return lambda params, batch: objective.loss(model, params, batch)[1]


def _summed_gradients(
    model: Transformer, objective: CausalLMConfig, microbatches: int, places: Places | None
) -> Callable[[Any, Batch, jax.Array], tuple[Any, Metrics]]:
    """(params, batch, key) -> gradients and metrics, sums over all tokens of the batch."""

    def laid(found: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
        return found if places is None else (jax.lax.with_sharding_constraint(found[0], places.gradients), found[1])

    def gradients(params: Any, batch: Batch, key: jax.Array) -> tuple[Any, Metrics]:
        loss = lambda params: objective.loss(model, params, batch, key)  # noqa: E731
        (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return gradient, metrics

    def accumulated(params: Any, batch: Batch, key: jax.Array) -> tuple[Any, Metrics]:
        def one(carry: Any, item: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            gradient, metrics = gradients(params, *item)
            total = jax.tree.map(lambda sum, part: sum + part.astype(jnp.float32), carry[0], gradient)
            return laid((total, add(carry[1], metrics))), None

        parts = jax.tree.map(lambda x: _interleave(x, microbatches), batch)
        keys = jax.random.split(key, microbatches)
        shapes = jax.eval_shape(gradients, params, jax.tree.map(lambda x: x[0], parts), keys[0])
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)
        return jax.lax.scan(one, laid(zeros), (parts, keys))[0]

    return accumulated if microbatches > 1 else lambda *arguments: laid(gradients(*arguments))


def _interleave(x: jax.Array, parts: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...], taking every parts-th row, so that each part stays spread over devices."""
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)

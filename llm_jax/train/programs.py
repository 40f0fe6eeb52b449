"""The compiled functions that train and evaluate a model with a sharding."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import optax

from llm_jax.core.metrics import Metrics
from llm_jax.layers.roles import unboxed
from llm_jax.models.build import Model, abstract_parameters, boxed_parameters
from llm_jax.objectives.objective import AnyBatch, Objective
from llm_jax.optim import Optimizer
from llm_jax.sharding import partition
from llm_jax.sharding.partition import Layout
from llm_jax.train.compile import Update, compiled_update
from llm_jax.train.state import (
    EvaluationWeights,
    TrainState,
    at_rest,
    initial_state,
    state_of,
    state_shardings,
    weights_for_use,
)
from llm_jax.train.step import StepConfig, evaluation_step, train_step


@dataclasses.dataclass(frozen=True)
class Programs:
    """The functions of training and evaluation. Nothing is computed or allocated on a device until one is called."""

    model: Model
    transformation: optax.GradientTransformation
    layout: Layout
    abstract_state: TrainState
    """Shapes, dtypes and shardings of the training state between two steps."""
    fresh: Callable[[], TrainState]
    """Returns the initial state, in which the parameters of all models are random."""
    begin: Callable[[Any], TrainState]
    """params -> the initial state with these parameters and without frozen models; `with_frozen` adds them."""
    step: Update
    """The training step. The state is donated."""
    evaluate: Callable[[EvaluationWeights, AnyBatch], Metrics]
    weights: Callable[[TrainState], EvaluationWeights]
    """state -> the weights that evaluation, samples and generation use."""

    def activated(self) -> contextlib.AbstractContextManager:
        """Context manager in which all functions must be called, so that activations are sharded over the mesh."""
        return partition.activate(self.layout)

    def with_frozen(self, state: TrainState, frozen: Mapping[str, Any]) -> TrainState:
        """The state with these parameter trees of the frozen models, sharded as the layout requires."""
        shardings = {
            name: jax.tree.map(lambda x: x.sharding, tree) for name, tree in self.abstract_state.frozen.items()
        }
        return dataclasses.replace(state, frozen=jax.device_put(dict(frozen), shardings))

    def compile_step(self, batch: AnyBatch) -> jax.stages.Compiled:
        """The compiled training step for batches of these shapes. Runs nothing."""
        with self.activated():
            return self.step.lower(self.abstract_state, batch).compile()


def programs(
    model: Model,
    objective: Objective,
    optimizer: Optimizer,
    config: StepConfig,
    layout: Layout,
    steps: int,
    seed: int,
    frozen: Mapping[str, Model] = MappingProxyType({}),
) -> Programs:
    """The functions of a run of `steps` steps.

    Args:
      frozen: models that the objective runs beside `model`, by name. They are not trained.

    Raises:
      ValueError: if the model's dimensions are not divisible as the layout requires.
    """
    parameters = boxed_parameters(model)
    shapes, logical_axes = unboxed(parameters), partition.logical_axes(parameters)
    transformation = optimizer.build(steps, parameters)
    ema = config.ema_decay is not None
    fresh = functools.partial(initial_state, model, transformation, seed, ema, frozen)
    # Traced for its shapes; nothing is allocated.
    abstract = jax.eval_shape(fresh)
    beside = {name: abstract_parameters(one)[1] for name, one in frozen.items()}
    shardings = state_shardings(abstract, logical_axes, layout, beside)
    resting = at_rest(shardings, layout)
    rate = optimizer.learning_rate(steps)
    update = functools.partial(train_step, model, objective, transformation, config, seed, rate=rate, frozen=frozen)
    return Programs(
        model=model,
        transformation=transformation,
        layout=layout,
        abstract_state=jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, resting
        ),
        # Compiled with shardings, so that no device ever holds the whole state.
        fresh=jax.jit(fresh, out_shardings=resting),
        begin=jax.jit(
            functools.partial(state_of, optimizer=transformation, ema=ema),
            out_shardings=dataclasses.replace(resting, frozen={}),
        ),
        step=compiled_update(update, layout, shardings, layout.gradients(shapes, logical_axes), model.precision),
        evaluate=jax.jit(
            evaluation_step(model, objective, config.accumulate, frozen),
            in_shardings=(EvaluationWeights(shardings.params, shardings.frozen), layout.rows),
            out_shardings=layout.whole,
        ),
        weights=_weights(optimizer, shardings),
    )


def _weights(optimizer: Optimizer, shardings: TrainState) -> Callable[[TrainState], EvaluationWeights]:
    use = weights_for_use(optimizer.evaluation_params)

    @jax.jit
    def found(state: TrainState) -> EvaluationWeights:
        return use(dataclasses.replace(state, opt_state=jax.device_put(state.opt_state, shardings.opt_state)))

    # device_put instead of out_shardings: jit would copy parameters that it returns unchanged.
    placed = EvaluationWeights(shardings.params, shardings.frozen)
    return lambda state: jax.device_put(found(state), placed)

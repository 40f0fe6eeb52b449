"""The training state."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from llm_jax.core import rng
from llm_jax.models.build import Model, initial_parameters
from llm_jax.sharding import partition
from llm_jax.sharding.partition import Layout


@flax.struct.dataclass
class TrainState:
    """A pytree of everything that a checkpoint must hold, except the data position.

    Attributes:
      step: int32 scalar, number of completed steps.
      params: parameter tree.
      opt_state: optax state.
      ema: moving average of the parameters in float32; None if disabled.
      frozen: {name: parameter tree} of the models that are not trained. A step returns them unchanged.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any = None
    frozen: dict[str, Any] = flax.struct.field(default_factory=dict)


@flax.struct.dataclass
class EvaluationWeights:
    """The weights with which a model is evaluated, sampled from and exported.

    Attributes:
      params: parameter tree of the trained model: the moving average if there is one.
      frozen: {name: parameter tree} of the models that are not trained.
    """

    params: Any
    frozen: dict[str, Any] = flax.struct.field(default_factory=dict)


def initial_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    seed: int,
    ema: bool,
    frozen: Mapping[str, Model] = MappingProxyType({}),
) -> TrainState:
    """The initial state, with random parameters of all models. Jit it with the shardings of `state_shardings`, so that
    no device holds the whole state."""
    state = state_of(nn.unbox(initial_parameters(model, rng.key(seed, "parameters"))), optimizer, ema)
    drawn = {name: nn.unbox(initial_parameters(one, rng.key(seed, f"frozen {name}"))) for name, one in frozen.items()}
    return dataclasses.replace(state, frozen=drawn)


def state_of(params: Any, optimizer: optax.GradientTransformation, ema: bool) -> TrainState:
    """The initial state with these parameters and without frozen models."""
    average = jax.tree.map(lambda p: p.astype(jnp.float32), params) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)


def state_shardings(
    state: TrainState, logical_axes: Any, layout: Layout, frozen: Mapping[str, Any] = MappingProxyType({})
) -> TrainState:
    """Shardings of an abstract state during a step. Optimizer state with the shape of parameters, and the moving
    average, are sharded by the strategy's optimizer rules.

    Args:
      frozen: logical axes of the frozen models, which are sharded as parameters are.
    """
    # ZeRO: state of the optimizer may be sharded where parameters are replicated.
    copies = layout.optimizer(state.params, logical_axes)
    return dataclasses.replace(
        state,
        step=layout.whole,
        params=layout.parameters(state.params, logical_axes),
        opt_state=partition.like_parameters(state.opt_state, state.params, copies, layout.mesh),
        ema=None if state.ema is None else copies,
        frozen={name: layout.parameters(tree, frozen[name]) for name, tree in state.frozen.items()},
    )


def at_rest(shardings: TrainState, layout: Layout) -> TrainState:
    """Shardings of a state between two steps, from those during a step: the optimizer state may be offloaded."""
    if not layout.offload:
        return shardings
    on_host = jax.tree.map(lambda s: s.with_memory_kind(partition.HOST), shardings.opt_state)
    return dataclasses.replace(shardings, opt_state=on_host)


def weights_for_use(evaluation_params: Callable[[Any, Any], Any]) -> Callable[[TrainState], EvaluationWeights]:
    """Returns state -> the weights for evaluation, samples and generation: the moving average if there is one,
    otherwise `evaluation_params` of the optimizer (schedule-free methods evaluate at another point than they train)."""

    def weights(state: TrainState) -> EvaluationWeights:
        if state.ema is None:
            params = evaluation_params(state.opt_state, state.params)
        else:
            params = jax.tree.map(lambda average, param: average.astype(param.dtype), state.ema, state.params)
        return EvaluationWeights(params, state.frozen)

    return weights

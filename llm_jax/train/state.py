"""The training state."""

import dataclasses
from collections.abc import Callable
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
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any = None


def initial_state(model: Model, optimizer: optax.GradientTransformation, seed: int, ema: bool) -> TrainState:
    """The initial state. Jit it with the shardings of `state_shardings`, so that no device holds the whole state."""
    return state_of(nn.unbox(initial_parameters(model, rng.key(seed, "parameters"))), optimizer, ema)


def state_of(params: Any, optimizer: optax.GradientTransformation, ema: bool) -> TrainState:
    """The initial state with these parameters."""
    average = jax.tree.map(lambda p: p.astype(jnp.float32), params) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)


def state_shardings(state: TrainState, logical_axes: Any, layout: Layout) -> TrainState:
    """Shardings of an abstract state during a step. Optimizer state with the shape of parameters, and the moving
    average, are sharded by the strategy's optimizer rules."""
    # ZeRO: state of the optimizer may be sharded where parameters are replicated.
    copies = layout.optimizer(state.params, logical_axes)
    return dataclasses.replace(
        state,
        step=layout.whole,
        params=layout.parameters(state.params, logical_axes),
        opt_state=partition.like_parameters(state.opt_state, state.params, copies, layout.mesh),
        ema=None if state.ema is None else copies,
    )


def at_rest(shardings: TrainState, layout: Layout) -> TrainState:
    """Shardings of a state between two steps, from those during a step: the optimizer state may be offloaded."""
    if not layout.offload:
        return shardings
    on_host = jax.tree.map(lambda s: s.with_memory_kind(partition.HOST), shardings.opt_state)
    return dataclasses.replace(shardings, opt_state=on_host)


def weights_for_use(evaluation_params: Callable[[Any, Any], Any]) -> Callable[[TrainState], Any]:
    """Returns state -> the weights for evaluation, samples and generation: the moving average if there is one,
    otherwise `evaluation_params` of the optimizer (schedule-free methods evaluate at another point than they train)."""

    def weights(state: TrainState) -> Any:
        if state.ema is not None:
            return jax.tree.map(lambda average, param: average.astype(param.dtype), state.ema, state.params)
        return evaluation_params(state.opt_state, state.params)

    return weights

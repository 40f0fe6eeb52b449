"""Everything that training carries from step to step."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm_jax.core import rng
from llm_jax.models.transformer import Transformer
from llm_jax.sharding import partition
from llm_jax.sharding.rules import Table


@flax.struct.dataclass
class TrainState:
    """A pytree; all that a checkpoint must hold besides the data position.

    Attributes:
      step: int32 scalar, number of updates made.
      params: parameter tree.
      opt_state: optax state.
      ema: moving average of the parameters in float32; None if none is kept.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any = None


def abstract_parameters(model: Transformer) -> tuple[Any, Any]:
    """Shapes and logical axes of the model's parameters, without making any."""
    boxed = jax.eval_shape(lambda: _init(model, 0, boxed=True))
    return nn.unbox(boxed), partition.logical_axes(boxed)


def initial_state(model: Transformer, optimizer: optax.GradientTransformation, seed: int, ema: bool) -> TrainState:
    """A fresh state; jit it with the shardings of `state_shardings` so that no device holds it whole."""
    params = _init(model, seed, boxed=False)
    average = jax.tree.map(lambda p: p.astype(jnp.float32), params) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)


def state_shardings(state: TrainState, logical_axes: Any, mesh: Mesh, table: Table) -> TrainState:
    """Shardings of an abstract state: the optimizer's and the average's copies lie where their parameters do."""
    parameters = partition.shardings(state.params, logical_axes, mesh, table)
    opt_state = partition.like_parameters(state.opt_state, state.params, parameters, mesh)
    scalar = NamedSharding(mesh, PartitionSpec())
    return TrainState(scalar, parameters, opt_state, None if state.ema is None else parameters)


def _init(model: Transformer, seed: int, boxed: bool) -> Any:
    params = model.init(rng.key(seed, "parameters"), jnp.zeros((1, 1), jnp.int32))["params"]
    return params if boxed else nn.unbox(params)

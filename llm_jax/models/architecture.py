"""The part of a config that determines the results of a model with given weights."""

import dataclasses
from typing import Any

from llm_jax.core.configclass import deferred
from llm_jax.layers.attention.kernels import BlockedKernel
from llm_jax.layers.ffn.balance import BiasUpdate
from llm_jax.layers.ffn.dispatch.dense import Dense
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.initialisers import Normal, Zero
from llm_jax.layers.recurrent.mamba2 import TimeScales
from llm_jax.layers.recurrent.matrix_recurrence import ChunkwiseForm
from llm_jax.models.stack import Execution

_LEFT_OUT = {
    "init": Normal(),
    "out_init": Normal(),
    "query_init": None,
    "value_init": None,
    "bias_init": Zero(),
    "dropout": 0.0,
    "layer_drop": 0.0,
    "execution": Execution(),
    "kernel": BlockedKernel(),
    "form": ChunkwiseForm(),
    "noise": None,
    "random_second": False,
    "time_scales": TimeScales(),
}
"""Values of the fields that affect only training or speed, by the name of the field."""


def architecture(config: Any) -> Any:
    """The config with defaults for all that affects only training or speed: initialisers, dropout, execution, kernels
    and forms; and, for MoE layers, dispatch, balance losses and noise. All dispatches compute the same results where no
    token is dropped."""
    with deferred():  # its parts have been checked
        return _architecture(config)


def _architecture(config: Any) -> Any:
    if isinstance(config, tuple):
        return tuple(map(_architecture, config))
    if not dataclasses.is_dataclass(config):
        return config
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if isinstance(config, MoEConfig):
        values["balance"] = tuple(BiasUpdate() for one in config.balance if isinstance(one, BiasUpdate))
        # A dispatch that alone serves its router is part of the architecture.
        values["dispatch"] = Dense() if config.router.routes in Dense.serves else config.dispatch
    kept = {name: _architecture(value) for name, value in values.items() if name not in _LEFT_OUT}
    return type(config)(**{name: _LEFT_OUT[name] for name in values.keys() & _LEFT_OUT.keys()}, **kept)

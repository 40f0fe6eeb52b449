"""The part of a config that determines the results of a model with given weights."""

import dataclasses
from typing import Any

from llm_jax.layers.attention.kernels import BlockedKernel
from llm_jax.layers.ffn.balance import BiasUpdate
from llm_jax.layers.ffn.dispatch.dense import Dense
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.initialisers import Normal, Zero
from llm_jax.layers.recurrent.mamba2 import TimeScales
from llm_jax.layers.recurrent.matrix_recurrence import ChunkwiseForm
from llm_jax.models.stack import Execution

_DEFAULTS = {
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
"""Fields of configs, at any depth, that affect only training or speed."""


def architecture(config: Any) -> Any:
    """The config with defaults for all that affects only training or speed: initialisers, dropout, execution, kernels
    and forms; and, for MoE layers, dispatch, balance losses and noise. All dispatches compute the same results where no
    token is dropped."""
    if isinstance(config, tuple):
        return tuple(architecture(item) for item in config)
    if not dataclasses.is_dataclass(config):
        return config
    if isinstance(config, MoEConfig):
        updates = tuple(BiasUpdate() for one in config.balance if isinstance(one, BiasUpdate))
        # A dispatch that alone serves its router is part of the architecture.
        dispatch = Dense() if config.router.routes in Dense.serves else config.dispatch
        config = dataclasses.replace(config, dispatch=dispatch, balance=updates)
    names = [field.name for field in dataclasses.fields(config)]
    return type(config)(
        **{name: _DEFAULTS[name] if name in _DEFAULTS else architecture(getattr(config, name)) for name in names}
    )

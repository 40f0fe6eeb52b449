"""Precision: the dtype of each kind of array."""

import dataclasses
from typing import Literal, get_args

import jax.numpy as jnp

from llm_jax.core.checks import check_one_of
from llm_jax.core.configclass import configclass

Float = Literal["float32", "bfloat16"]


@configclass
class Precision:
    """Dtypes of a run.

    Norm statistics, softmax, rotary angles, the loss and gradient accumulation are always float32.
    """

    params: Float = "float32"
    """Dtype of parameters and optimizer state."""
    compute: Float = "float32"
    """Dtype of activations and of the operands of matrix products."""

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            check_one_of(name, value, get_args(Float))

    @property
    def param_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.params)

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(self.compute)


MIXED = Precision(params="float32", compute="bfloat16")
"""Mixed precision, as is usual on accelerators: float32 master weights, bfloat16 computation."""

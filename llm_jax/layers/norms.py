"""Normalisation over the model width. Statistics are float32.

Legend: B batch, T length, D model width.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.checks import check_positive
from llm_jax.core.dtypes import Precision
from llm_jax.sharding import axes


@dataclasses.dataclass(frozen=True)
class LayerNormConfig:
    """Ba et al. 2016, arXiv:1607.06450, eq. 4."""

    epsilon: float = 1e-5
    bias: bool = True

    def __post_init__(self):
        check_positive(epsilon=self.epsilon)

    def build(self, precision: Precision, name: str) -> "LayerNorm":
        return LayerNorm(self, precision, name=name)

    def parameters(self, width: int) -> int:
        return width * (1 + self.bias)


@dataclasses.dataclass(frozen=True)
class RMSNormConfig:
    """Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4."""

    epsilon: float = 1e-6

    def __post_init__(self):
        check_positive(epsilon=self.epsilon)

    def build(self, precision: Precision, name: str) -> "RMSNorm":
        return RMSNorm(self, precision, name=name)

    def parameters(self, width: int) -> int:
        return width


NormConfig = LayerNormConfig | RMSNormConfig


class LayerNorm(nn.Module):
    """[..., D] -> [..., D] in the compute type."""

    config: LayerNormConfig
    precision: Precision

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.config.epsilon)
        y = centred * inverse * _vector(self, "scale", nn.initializers.ones_init(), x.shape[-1])
        if self.config.bias:
            y += _vector(self, "bias", nn.initializers.zeros_init(), x.shape[-1])
        return y.astype(self.precision.dtype)


class RMSNorm(nn.Module):
    """[..., D] -> [..., D] in the compute type."""

    config: RMSNormConfig
    precision: Precision

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.config.epsilon)
        y = x32 * inverse * _vector(self, "scale", nn.initializers.ones_init(), x.shape[-1])
        return y.astype(self.precision.dtype)


def _vector(module: nn.Module, name: str, init: nn.initializers.Initializer, width: int) -> jax.Array:
    init = nn.with_logical_partitioning(init, (axes.NORM,))
    return module.param(name, init, (width,), module.precision.param_dtype).astype(jnp.float32)

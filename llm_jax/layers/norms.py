"""Normalisation over the feature axis. Statistics are float32.

Legend: B batch, T length, D model width.
"""

import abc

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.checks import check_positive
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.barrier import fence_gradients
from llm_jax.layers.broadcast import broadcast
from llm_jax.layers.derivative import custom_vjp
from llm_jax.layers.initialisers import annotated
from llm_jax.layers.roles import Role
from llm_jax.sharding import axes


@configclass
class Norm(abc.ABC):
    """A normalisation of vectors. To add a norm, derive a configclass from it."""

    @abc.abstractmethod
    def build(self, precision: Precision, name: str | None) -> nn.Module:
        """A module from [..., D] to [..., D] in the compute dtype."""

    @abc.abstractmethod
    def parameters(self, width: int) -> int:
        """Number of parameters for vectors of `width` features."""


@configclass
class LayerNormConfig(Norm):
    """Ba et al. 2016, arXiv:1607.06450, eq. 4."""

    epsilon: float = 1e-5
    bias: bool = True

    def __post_init__(self):
        check_positive(epsilon=self.epsilon)

    def build(self, precision: Precision, name: str | None) -> "LayerNorm":
        return LayerNorm(self, precision, name=name)

    def parameters(self, width: int) -> int:
        return width * (1 + self.bias)


@configclass
class RMSNormConfig(Norm):
    """Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4."""

    epsilon: float = 1e-6
    from_zero: bool = False
    """Whether the scale is one plus the parameter, which then starts at zero (Gemma)."""

    def __post_init__(self):
        check_positive(epsilon=self.epsilon)

    def build(self, precision: Precision, name: str | None) -> "RMSNorm":
        return RMSNorm(self, precision, name=name)

    def parameters(self, width: int) -> int:
        return width


@configclass
class PlainLayerNormConfig(Norm):
    """LayerNorm without scale and bias (Groeneveld et al. 2024, arXiv:2402.00838, 2.1: OLMo)."""

    epsilon: float = 1e-5

    def __post_init__(self):
        check_positive(epsilon=self.epsilon)

    def build(self, precision: Precision, name: str | None) -> "PlainLayerNorm":
        return PlainLayerNorm(self, precision, name=name)

    def parameters(self, width: int) -> int:
        return 0


@configclass
class OffsetLayerNormConfig(Norm):
    """LayerNorm whose scale is one plus the parameter, which starts at zero (NVIDIA 2024, arXiv:2402.16819, 2)."""

    epsilon: float = 1e-5

    def __post_init__(self):
        check_positive(epsilon=self.epsilon)

    def build(self, precision: Precision, name: str | None) -> "OffsetLayerNorm":
        return OffsetLayerNorm(self, precision, name=name)

    def parameters(self, width: int) -> int:
        return 2 * width


class PlainLayerNorm(nn.Module):
    """[..., D] -> [..., D] in the compute dtype."""

    config: PlainLayerNormConfig
    precision: Precision

    def __call__(self, x: jax.Array) -> jax.Array:
        scale_D = jnp.ones(x.shape[-1], jnp.float32)
        return fence_gradients(normalise(x.astype(self.precision.dtype), scale_D, self.config.epsilon, True))


class OffsetLayerNorm(nn.Module):
    """[..., D] -> [..., D] in the compute dtype."""

    config: OffsetLayerNormConfig
    precision: Precision

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale_D = _vector(self, "scale", nn.initializers.zeros_init(), x.shape[-1], Role.NORM) + 1
        y = normalise(x.astype(self.precision.dtype), scale_D, self.config.epsilon, True)
        bias_D = _vector(self, "bias", nn.initializers.zeros_init(), x.shape[-1], Role.BIAS)
        return fence_gradients(y + broadcast(bias_D, y.shape, y.dtype))


class LayerNorm(nn.Module):
    """[..., D] -> [..., D] in the compute dtype."""

    config: LayerNormConfig
    precision: Precision

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale_D = _vector(self, "scale", nn.initializers.ones_init(), x.shape[-1], Role.NORM)
        y = normalise(x.astype(self.precision.dtype), scale_D, self.config.epsilon, centred=True)
        if self.config.bias:
            bias_D = _vector(self, "bias", nn.initializers.zeros_init(), x.shape[-1], Role.BIAS)
            y += broadcast(bias_D, y.shape, y.dtype)
        return fence_gradients(y)


class RMSNorm(nn.Module):
    """[..., D] -> [..., D] in the compute dtype."""

    config: RMSNormConfig
    precision: Precision

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.zeros_init() if self.config.from_zero else nn.initializers.ones_init()
        scale_D = _vector(self, "scale", init, x.shape[-1], Role.NORM)
        if self.config.from_zero:
            scale_D += 1
        # On TPUs the product that computes the gradient of y must not be fused with the reductions of the norm's
        # backward pass (barrier.py). A barrier for y itself brought nothing (experiments/LOG.md).
        y = normalise(x.astype(self.precision.dtype), scale_D, self.config.epsilon, centred=False)
        return fence_gradients(y)


@custom_vjp(2, 3)
def normalise(x: jax.Array, scale_D: jax.Array, epsilon: float, centred: bool) -> jax.Array:
    """RMS norm of x, or layer norm with `centred`, times scale [D] float32, in the dtype of x.

    The backward pass saves x and one number per vector, and needs two reductions.
    """
    return _normalise(x, scale_D, epsilon, centred)[0]


def _normalise(x, scale_D, epsilon, centred):
    normal, inverse = _statistics(x, epsilon, centred)
    # The scale multiplies in float32 and the product is rounded once, as in Gemma's code; that of LLaMA rounds the
    # normalised vector before the scale.
    return (normal * scale_D).astype(x.dtype), (x, scale_D, inverse)


def _statistics(x, epsilon, centred):
    # The variance is the mean of squared differences. E[x^2] - E[x]^2, which needs one pass, loses its digits where the
    # mean is large.
    x32 = x.astype(jnp.float32)
    if centred:
        x32 -= jnp.mean(x32, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + epsilon)
    return x32 * inverse, inverse


def _normalise_backward(epsilon, centred, residuals, dy):
    x, scale_D, inverse = residuals
    normal = x.astype(jnp.float32)
    if centred:
        normal -= jnp.mean(normal, axis=-1, keepdims=True)
    normal *= inverse
    dy = dy.astype(jnp.float32)
    # With n = (x - mean) * inverse: dx = inverse * (dn - mean(dn) - n mean(dn n)); without centring mean(dn) is absent.
    dnormal = dy * scale_D
    dx = dnormal - normal * jnp.mean(dnormal * normal, axis=-1, keepdims=True)
    if centred:
        dx -= jnp.mean(dnormal, axis=-1, keepdims=True)
    return (dx * inverse).astype(x.dtype), jnp.sum(dy * normal, axis=tuple(range(x.ndim - 1)))


normalise.defvjp(_normalise, _normalise_backward)


def _vector(module: nn.Module, name: str, init: nn.initializers.Initializer, width: int, role: Role) -> jax.Array:
    init = annotated(init, (axes.NORM,), role)
    return module.param(name, init, (width,), module.precision.param_dtype).astype(jnp.float32)

"""Pointwise activation functions by their usual names, plain and gated.

Each has a custom gradient: the backward pass saves the inputs only and recomputes the rest, which is cheaper than
reading what autodiff would store.
"""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from llm_jax.layers.reuse import computed_again

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "relu_squared", "tanh"]
Gate = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "relu_squared", "tanh", "clamped_swiglu"]
"""Activation of a gated layer: activation(gate) * x, or a function of both."""

# The constants of u, twice the argument of GELU's tanh: 0.5 (1 + tanh(u / 2)) = sigmoid(u).
_GELU = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715
# The sharpness of quick GELU, which gpt-oss uses too (its alpha), and the limit of gpt-oss's SwiGLU.
_SHARPNESS, _LIMIT = 1.702, 7.0


def _gelu_tanh(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """0.5 x (1 + tanh(u / 2)) = x sigmoid(u) (Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2)."""
    sigmoid = jax.nn.sigmoid(_GELU * (x + _CUBIC * x * x * x))
    return x * sigmoid, sigmoid + x * sigmoid * (1 - sigmoid) * (_GELU * (1 + 3 * _CUBIC * x * x))


def _gelu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x Phi(x), Phi the normal distribution (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    phi = 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))
    # The derivative of x Phi(x) is Phi(x) plus x times the normal density.
    return x * phi, phi + x * jnp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))


def _quick_gelu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x sigmoid(1.702 x) (Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2), as in CLIP."""
    sigmoid = jax.nn.sigmoid(_SHARPNESS * x)
    return x * sigmoid, sigmoid * (1 + _SHARPNESS * x * (1 - sigmoid))


def _silu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x sigmoid(x) (Elfwing et al. 2017, arXiv:1702.03118)."""
    sigmoid = jax.nn.sigmoid(x)
    return x * sigmoid, sigmoid * (1 + x * (1 - sigmoid))


def _relu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    # The derivative at 0 is 0, as in jax.nn.relu. That of jnp.maximum would be 0.5 there.
    return jnp.maximum(x, 0), (x > 0).astype(x.dtype)


def _relu_squared(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """max(x, 0)^2 (So et al. 2021, arXiv:2109.08668, section 4)."""
    positive = jnp.maximum(x, 0)
    return positive * positive, 2 * positive


def _tanh(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = jnp.tanh(x)
    return y, 1 - y * y


def _plain(pair: Callable) -> Callable[[jax.Array], jax.Array]:
    """The function of a (value, derivative) pair."""

    @jax.custom_vjp
    def function(x: jax.Array) -> jax.Array:
        return pair(x)[0]

    # Without `computed_again` XLA on CPUs merges the recomputation with the forward pass and stores its results.
    function.defvjp(lambda x: (pair(x)[0], x), lambda x, dy: (dy * pair(computed_again(x))[1],))
    return function


def _gated(pair: Callable) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(gate, x) -> activation(gate) * x."""

    @jax.custom_vjp
    def function(gate: jax.Array, x: jax.Array) -> jax.Array:
        return pair(gate)[0] * x

    def backward(inputs: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        gate, x = computed_again(inputs)
        # Both gradients recompute the intermediate results that they share, so that these are not stored.
        return dy * x * pair(gate)[1], dy * pair(computed_again(gate))[0]

    function.defvjp(lambda gate, x: (pair(gate)[0] * x, (gate, x)), backward)
    return function


@jax.custom_vjp
def _clamped_swiglu(gate: jax.Array, x: jax.Array) -> jax.Array:
    """g sigmoid(1.702 g) (u + 1), with the gate g clipped to at most 7 and the gated input u to [-7, 7] (gpt-oss,
    arXiv:2508.10925, 2.2)."""
    return _clamped_parts(gate, x)[0]


def _clamped_parts(gate: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The value and its derivatives by gate and x."""
    # A clipped gate or input gets no gradient: the comparisons below are the derivatives of the clips.
    g, u = jnp.minimum(gate, _LIMIT), jnp.clip(x, -_LIMIT, _LIMIT)
    sigmoid = jax.nn.sigmoid(_SHARPNESS * g)
    slope = sigmoid * (1 + _SHARPNESS * g * (1 - sigmoid))
    return g * sigmoid * (u + 1), (gate <= _LIMIT) * slope * (u + 1), (jnp.abs(x) <= _LIMIT) * g * sigmoid


def _clamped_backward(inputs: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    _, by_gate, by_x = _clamped_parts(*computed_again(inputs))
    return dy * by_gate, dy * by_x


_clamped_swiglu.defvjp(lambda gate, x: (_clamped_parts(gate, x)[0], (gate, x)), _clamped_backward)

_PAIRS = {"gelu": _gelu, "gelu_tanh": _gelu_tanh, "quick_gelu": _quick_gelu, "silu": _silu}
_PAIRS |= {"relu": _relu, "relu_squared": _relu_squared, "tanh": _tanh}

ACTIVATIONS = {name: _plain(pair) for name, pair in _PAIRS.items()}
GATED = {name: _gated(pair) for name, pair in _PAIRS.items()} | {"clamped_swiglu": _clamped_swiglu}

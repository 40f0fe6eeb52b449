"""Pointwise nonlinearities by their usual names."""

import functools
from collections.abc import Callable
from typing import Literal

import jax

Activation = Literal["gelu", "gelu_tanh", "silu", "relu"]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}
"""gelu is Hendrycks and Gimpel 2016 (arXiv:1606.08415), exact by erf; gelu_tanh its approximation, as in GPT-2."""

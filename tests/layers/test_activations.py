"""Nonlinearities by their formulas."""

import math

import numpy as np
import pytest

from llm_jax.layers.activations import ACTIVATIONS

X = np.linspace(-4, 4, 41)
FORMULAS = {
    "gelu": [0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in X],
    "gelu_tanh": 0.5 * X * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3))),
    "silu": X / (1 + np.exp(-X)),
    "relu": np.maximum(X, 0),
}


def test_every_name_has_a_formula_here():
    assert set(FORMULAS) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", FORMULAS)
def test_name_means_formula(name):
    np.testing.assert_allclose(ACTIVATIONS[name](X.astype(np.float32)), FORMULAS[name], atol=1e-5)

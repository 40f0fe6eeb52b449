"""Positions of sines and cosines against the paper's formula."""

import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.dtypes import Precision
from llm_jax.layers.positions.sinusoidal import SinusoidalConfig

D = 8
PLACES = np.array([[0, 1, 2, 500]])


def _paper(position: int) -> np.ndarray:
    """Vaswani et al. 2017, 3.5, one feature at a time."""
    row = np.zeros(D)
    for i in range(D // 2):
        angle = position / 10_000 ** (2 * i / D)
        row[2 * i], row[2 * i + 1] = np.sin(angle), np.cos(angle)
    return row


def test_features_are_those_of_the_paper():
    expected = np.array([[_paper(place) for place in PLACES[0]]])
    pairs = SinusoidalConfig(interleaved=True).build(512, D, Precision(), "positions")(jnp.asarray(PLACES))
    np.testing.assert_allclose(pairs, expected, atol=1e-4)
    halves = SinusoidalConfig().build(512, D, Precision(), "positions")(jnp.asarray(PLACES))
    np.testing.assert_allclose(halves, np.concatenate([expected[..., ::2], expected[..., 1::2]], -1), atol=1e-4)


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="width is 7: .* must be even"):
        SinusoidalConfig().build(4, 7, Precision(), "positions")

"""Distributions of initial values; their moments in whole models are tested with the families."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layers.initialisers import (
    TORCH_DEFAULT,
    FanIn,
    Glorot,
    Normal,
    Uniform,
    UniformFanIn,
    UniformGlorot,
    Zero,
)

KINDS = [Normal, FanIn, Glorot, Uniform, UniformFanIn, UniformGlorot]
SHAPE = (300, 500)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_scales_are_positive(kind, value):
    field = dataclasses.fields(kind)[0]
    with pytest.raises(ValueError, match=f"{field.name} is {value}"):
        kind(value)


@pytest.mark.parametrize("kind", [Normal, FanIn])
def test_a_cut_is_positive(kind):
    with pytest.raises(ValueError, match="cut is 0.0"):
        kind(cut=0.0)


@pytest.mark.parametrize("init", [kind(0.5) for kind in KINDS], ids=lambda init: type(init).__name__)
def test_values_have_the_deviation_that_the_type_states(init):
    values = np.asarray(init.draw(*SHAPE)(jax.random.key(0), SHAPE, jnp.float32))
    assert values.std() == pytest.approx(init.stddev_of(*SHAPE), rel=0.01)
    assert abs(values.mean()) < 5 * values.std() / math.sqrt(values.size)


@pytest.mark.parametrize(
    ("init", "of_torch"),
    [
        (UniformGlorot(0.7), lambda torch, weight: torch.nn.init.xavier_uniform_(weight, 0.7)),
        (Glorot(0.7), lambda torch, weight: torch.nn.init.xavier_normal_(weight, 0.7)),
        (FanIn(math.sqrt(2)), lambda torch, weight: torch.nn.init.kaiming_normal_(weight, nonlinearity="relu")),
        (Normal(0.02, 3.0), lambda torch, weight: torch.nn.init.trunc_normal_(weight, std=0.02, a=-0.06, b=0.06)),
        (TORCH_DEFAULT, lambda torch, weight: torch.nn.Linear(*SHAPE, bias=False).weight.detach()),
    ],
)
def test_distributions_are_those_of_torch(init, of_torch):
    """Equal quantiles of two samples of 150,000; torch's weights are [output, input]."""
    torch = pytest.importorskip("torch", reason="torch is not installed: its initialisers are not compared")
    torch.manual_seed(0)
    theirs = of_torch(torch, torch.empty(SHAPE[::-1])).numpy()
    ours = np.asarray(init.draw(*SHAPE)(jax.random.key(0), SHAPE, jnp.float32))
    shares = np.array([0, 0.01, 0.1, 0.25, 0.75, 0.9, 0.99, 1])
    # The ends of a Gaussian that is not cut are of one value each.
    shares = shares if isinstance(init, UniformGlorot | UniformFanIn) or getattr(init, "cut", None) else shares[1:-1]
    np.testing.assert_allclose(np.quantile(ours, shares), np.quantile(theirs, shares), rtol=0.03)


def test_zeros_are_zeros():
    assert not np.asarray(Zero().draw(*SHAPE)(jax.random.key(0), SHAPE, jnp.float32)).any()
    assert Zero().stddev_of(*SHAPE) == 0

"""Feed-forward layers against numpy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.core.dtypes import Precision
from llm_jax.layers.ffn.mlp import GLUConfig, MLPConfig
from llm_jax.layers.initialisers import Normal

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(2, 3, 4))


def _linear(x, params):
    return x @ params["kernel"] + params.get("bias", 0.0)


def _random(config):
    shapes = jax.eval_shape(config.build(4, Precision(), None).init, jax.random.key(0), X, None)["params"]
    return jax.tree.map(lambda leaf: GENERATOR.normal(size=leaf.shape), nn.unbox(shapes))


@pytest.mark.parametrize("bias", [True, False])
def test_mlp_is_down_of_activated_up(bias):
    config = MLPConfig(6, activation="relu", bias=bias)
    params = _random(config)
    assert ("bias" in params["up"]) == ("bias" in params["down"]) == bias
    y, report = config.build(4, Precision(), None).apply({"params": params}, jnp.asarray(X, jnp.float32), None)
    assert report is None
    expected = _linear(np.maximum(_linear(X, params["up"]), 0), params["down"])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_glu_gates_one_projection_by_the_other(bias):
    config = GLUConfig(6, bias=bias)
    params = _random(config)
    y, report = config.build(4, Precision(), None).apply({"params": params}, jnp.asarray(X, jnp.float32), None)
    assert report is None
    gate = _linear(X, params["gate"])
    expected = _linear(gate / (1 + np.exp(-gate)) * _linear(X, params["up"]), params["down"])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [MLPConfig, GLUConfig])
def test_parameters_and_flops_are_counted(kind, bias):
    config = kind(6, bias=bias)
    shapes = jax.eval_shape(config.build(4, Precision(), None).init, jax.random.key(0), X, None)
    assert config.parameters(4) == trees.count(shapes)
    kernels = sum(leaf.size for name, leaf in trees.named_leaves(shapes) if "kernel" in name)
    assert config.matrix_flops(4) == 2 * kernels


@pytest.mark.parametrize("kind", [MLPConfig, GLUConfig])
def test_initial_scales_are_those_of_the_config(kind):
    config = kind(300, init=Normal(0.5), out_init=Normal(0.05))
    made = config.build(200, Precision(), None).init(jax.random.key(0), jnp.zeros((1, 1, 200)), None)["params"]
    for name, layer in made.items():
        np.testing.assert_allclose(np.std(layer["kernel"].value), 0.05 if name == "down" else 0.5, rtol=0.03)


@pytest.mark.parametrize("kind", [MLPConfig, GLUConfig])
def test_bad_values_are_refused(kind):
    with pytest.raises(ValueError, match="hidden is 0"):
        kind(0)
    with pytest.raises(ValueError, match="activation is 'sillu'.*did you mean 'silu'"):
        kind(4, activation="sillu")


def test_a_function_of_two_inputs_gates_and_does_nothing_else():
    GLUConfig(4, "clamped_swiglu")
    with pytest.raises(ValueError, match="activation is 'clamped_swiglu'"):
        MLPConfig(4, "clamped_swiglu")

"""The expert for all tokens, and its gate."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.core.dtypes import Precision
from llm_jax.layers.context import Context
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.layers.sequence import SequenceInfo

B, T, D = 2, 5, 8
GENERATOR = np.random.default_rng(0)
X = jnp.asarray(GENERATOR.normal(size=(B, T, D)), jnp.float32)
ALONE = MoEConfig(3, GLUConfig(6), SoftmaxConfig(2))
SHARED = dataclasses.replace(ALONE, shared=GLUConfig(10))
GATED = dataclasses.replace(SHARED, shared_gate=True)


def _run(config, params):
    places = jnp.broadcast_to(jnp.arange(T), (B, T))
    context = Context(SequenceInfo(places, jnp.ones((B, T), jnp.int32)))
    return np.asarray(config.build(D, Precision(), None).apply({"params": params}, X, context)[0])


def _params(config):
    context = Context(SequenceInfo(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), jnp.int32)))
    shapes = jax.eval_shape(config.build(D, Precision(), None).init, jax.random.key(0), X[:1, :1], context)["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(GENERATOR.normal(size=leaf.shape), jnp.float32), nn.unbox(shapes))


def test_it_is_added_and_its_gate_is_one_number_a_token():
    params = _params(GATED)
    without = {name: part for name, part in params.items() if name in ("router", "experts")}
    alone, ungated = _run(ALONE, without), _run(SHARED, without | {"shared": params["shared"]})
    gate = 1 / (1 + np.exp(-np.asarray(X @ params["shared_gate"]["kernel"])))
    assert gate.shape == (B, T, 1) and np.abs(ungated - alone).max() > 0.1
    np.testing.assert_allclose(_run(GATED, params), alone + gate * (ungated - alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [ALONE, SHARED, GATED])
def test_parameters_and_flops_are_counted(config):
    assert config.parameters(D) == trees.count(_params(config))
    # One of three experts is idle.
    idle = GLUConfig(6).parameters(D)
    assert config.active_parameters(D) == config.parameters(D) - idle
    assert config.matrix_flops(D) == 2 * (config.parameters(D) - idle)


def test_a_gate_of_nothing_is_refused():
    with pytest.raises(ValueError, match="shared_gate is True and shared is None"):
        dataclasses.replace(ALONE, shared_gate=True)

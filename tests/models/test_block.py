"""How mixer, ffn and norms are wired to the stream, against the formula of each wiring."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.dtypes import Precision
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.mixers.attention import AttentionConfig
from llm_jax.layers.mixers.context import Context
from llm_jax.layers.mixers.masks import Placement
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.models.block import Block, BlockConfig, Parallel, Serial

D, T = 8, 5
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, T, D)), jnp.float32)
PLACE = Context(Placement(jnp.broadcast_to(jnp.arange(T), (2, T))))

# f is the mixer, g the ffn; the others are the norms, in the order of their names.
FORMULAS = {
    "pre": (Serial(), "mixer_norm ffn_norm", lambda x, f, g, a, b: (y := x + f(a(x))) + g(b(y))),
    "post": (
        Serial(before=False, stream=True),
        "mixer_stream_norm ffn_stream_norm",
        lambda x, f, g, a, b: b((y := a(x + f(x))) + g(y)),
    ),
    "after": (
        Serial(before=False, after=True),
        "mixer_out_norm ffn_out_norm",
        lambda x, f, g, a, b: (y := x + a(f(x))) + b(g(y)),
    ),
    "sandwich": (
        Serial(after=True),
        "mixer_norm mixer_out_norm ffn_norm ffn_out_norm",
        lambda x, f, g, a, b, c, d: (y := x + b(f(a(x)))) + d(g(c(y))),
    ),
    "parallel": (Parallel(), "mixer_norm", lambda x, f, g, a: x + f(a(x)) + g(a(x))),
    "parallel, two norms": (
        Parallel(shared_norm=False),
        "mixer_norm ffn_norm",
        lambda x, f, g, a, b: x + f(a(x)) + g(b(x)),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_block_is_its_formula(name: str):
    wiring, names, formula = FORMULAS[name]
    config = BlockConfig(AttentionConfig(2, 4, 2), MLPConfig(16), LayerNormConfig(), wiring)
    block = Block(config, D, Precision())
    shapes = jax.eval_shape(block.init, jax.random.key(0), X, PLACE)["params"]
    generator = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(generator.normal(size=leaf.shape), jnp.float32), nn.unbox(shapes))
    assert set(params) == {"mixer", "ffn", *names.split()}
    assert config.parameters(D) == sum(leaf.size for leaf in jax.tree.leaves(params))

    def part(config_of_part, key):
        module = config_of_part.build(Precision(), None)
        return lambda x: module.apply({"params": params[key]}, x)

    mixer = config.mixer.build(D, Precision(), None)
    ffn = config.ffn.build(D, Precision(), None)
    expected = formula(
        X,
        lambda x: mixer.apply({"params": params["mixer"]}, x, PLACE)[0],
        lambda x: ffn.apply({"params": params["ffn"]}, x),
        *(part(config.norm, key) for key in names.split()),
    )
    actual, state = block.apply({"params": params}, X, PLACE)
    assert state is None
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_wiring_without_norms_is_refused():
    with pytest.raises(ValueError, match=re.escape("wiring has no norm: set at least one of before, after and stream")):
        Serial(before=False)

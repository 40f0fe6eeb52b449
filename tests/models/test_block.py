"""How mixer, ffn and norms are wired to the stream, against the formula of each wiring."""

import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.dtypes import Precision
from llm_jax.layers.attention.attention import AttentionConfig, CrossAttentionConfig
from llm_jax.layers.context import Context
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.block import Block, BlockConfig, Chain, NormedInput, Parallel, ScaledSerial, Serial, Wiring

D, T = 8, 5
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, T, D)), jnp.float32)
PLACE = SequenceInfo(jnp.broadcast_to(jnp.arange(T), (2, T)), jnp.ones((2, T), jnp.int32))
MEMORY = jnp.asarray(np.random.default_rng(2).normal(size=(2, T + 2, D)), jnp.float32)
READ = SequenceInfo(jnp.broadcast_to(jnp.arange(T + 2), (2, T + 2)), jnp.asarray(np.arange(T + 2) < T, jnp.int32)[None])
CONTEXT = Context(PLACE, encoded=READ, encoded_BSD=MEMORY)

# f is the mixer, h the cross attention, g the ffn; the others are the norms, in the order of their names.
FORMULAS = {
    "pre": (Serial(), "mixer_norm ffn_norm", lambda x, f, g, a, b: (y := x + f(a(x))) + g(b(y))),
    "scaled": (
        ScaledSerial(factor=0.3),
        "mixer_norm ffn_norm",
        lambda x, f, g, a, b: (y := x + 0.3 * f(a(x))) + 0.3 * g(b(y)),
    ),
    "normed input": (NormedInput(), "ffn_norm", lambda x, f, g, b: (y := x + f(x)) + g(b(y))),
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
    "chain": (Chain(), "", lambda x, f, g: g(f(x))),
}
READING = {
    "pre": (
        Serial(),
        "mixer_norm cross_norm ffn_norm",
        lambda x, f, h, g, a, b, c: (z := (y := x + f(a(x))) + h(b(y))) + g(c(z)),
    ),
    "post": (
        Serial(before=False, stream=True),
        "mixer_stream_norm cross_stream_norm ffn_stream_norm",
        lambda x, f, h, g, a, b, c: c((z := b((y := a(x + f(x))) + h(y))) + g(z)),
    ),
    "parallel": (Parallel(), "mixer_norm", lambda x, f, h, g, a: x + f(a(x)) + h(a(x)) + g(a(x))),
    "parallel, three norms": (
        Parallel(shared_norm=False),
        "mixer_norm cross_norm ffn_norm",
        lambda x, f, h, g, a, b, c: x + f(a(x)) + h(b(x)) + g(c(x)),
    ),
    "chain": (Chain(), "", lambda x, f, h, g: g(h(f(x)))),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_block_is_its_formula(name: str):
    _is_formula(*FORMULAS[name], cross=None)


@pytest.mark.parametrize("name", READING)
def test_a_block_that_reads_an_encoder_is_its_formula(name: str):
    _is_formula(*READING[name], cross=CrossAttentionConfig(4, 2, 2))


def test_a_block_may_be_a_mixer_alone():
    config = BlockConfig(AttentionConfig(2, 4, 2), None, LayerNormConfig())
    params = _params(config)
    mixer, norm = config.mixer.build(D, Precision(), None), config.norm.build(Precision(), None)
    normal = norm.apply({"params": params["mixer_norm"]}, X)
    expected = X + mixer.apply({"params": params["mixer"]}, normal, CONTEXT)[0]
    actual, *_ = Block(config, D, Precision()).apply({"params": params}, X, CONTEXT)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def _params(config: BlockConfig) -> dict:
    shapes = jax.eval_shape(Block(config, D, Precision()).init, jax.random.key(0), X, CONTEXT)["params"]
    generator = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(generator.normal(size=leaf.shape), jnp.float32), nn.unbox(shapes))
    assert config.parameters(D) == sum(leaf.size for leaf in jax.tree.leaves(params))
    return params


def _is_formula(wiring: Wiring, names: str, formula: Callable, cross: CrossAttentionConfig | None) -> None:
    norm = LayerNormConfig() if names else None
    config = BlockConfig(AttentionConfig(2, 4, 2), MLPConfig(16), norm, wiring, cross=cross)
    params = _params(config)
    branches = ["mixer", "cross", "ffn"] if cross else ["mixer", "ffn"]
    assert set(params) == {*branches, *names.split()}

    def branch(name: str) -> Callable:
        module = getattr(config, name).build(D, Precision(), None)
        own = {"params": params[name]}
        return lambda x: module.apply(own, x, CONTEXT)[0]

    def normed(name: str) -> Callable:
        return lambda x: config.norm.build(Precision(), None).apply({"params": params[name]}, x)

    expected = formula(X, *map(branch, branches), *map(normed, names.split()))
    actual, states, _ = Block(config, D, Precision()).apply({"params": params}, X, CONTEXT)
    assert states is None
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_wiring_without_norms_is_refused():
    with pytest.raises(ValueError, match=re.escape("wiring has no norm: set at least one of before, after and stream")):
        Serial(before=False)

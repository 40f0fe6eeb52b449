"""Attention against a loop over batch, heads and queries in numpy."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.core.dtypes import MIXED, Precision
from llm_jax.layers.attention.attention import AttentionConfig, CrossAttentionConfig, QKNormConfig
from llm_jax.layers.attention.masks import Bidirectional, Causal
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.context import Context
from llm_jax.layers.initialisers import Normal
from llm_jax.layers.norms import LayerNormConfig, RMSNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.layers.sequence import SequenceInfo

B, T, D, N, H = 2, 6, 8, 4, 4
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(B, T, D))
# Two packed documents and padding in the first row, one document in the second.
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
POSITIONS = np.array([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]])


def _weights(config):
    shapes = jax.eval_shape(
        config.build(D, Precision(), None).init,
        jax.random.key(0),
        jnp.zeros((1, 1, D)),
        Context(SequenceInfo(jnp.zeros((1, 1)))),
    )
    return jax.tree.map(lambda leaf: GENERATOR.normal(size=leaf.shape), nn.unbox(shapes["params"]))


def _turn(vector, position, base):
    half = len(vector) // 2
    out = np.empty(2 * half)
    for i in range(half):
        angle = position * base ** (-2 * i / (2 * half))
        out[i] = vector[i] * np.cos(angle) - vector[i + half] * np.sin(angle)
        out[i + half] = vector[i + half] * np.cos(angle) + vector[i] * np.sin(angle)
    return out


def _reference(config, params, x, positions, segments, memory=None):
    """Vaswani et al. 2017, eq. 1, one query of one head at a time; rows for padding are left at NaN.

    Args:
      memory: vectors, positions and segments of the keys; None: those of the queries.
    """
    x_S, positions_S, segments_S = (x, positions, segments) if memory is None else memory

    def project(name, vector, head):
        part = params[name]
        y = vector @ part["kernel"][:, head] + (part["bias"][head] if config.bias else 0)
        if config.qk_norm is None or name == "value":
            return clipped(y)
        scale = params[f"{name}_norm"]["scale"]
        if config.qk_norm.over == "head":
            return clipped(y / np.sqrt(np.mean(y**2) + 1e-6) * scale)
        if config.qk_norm.over == "each head":
            centred = y - np.mean(y)
            return clipped(centred / np.sqrt(np.mean(centred**2) + 1e-5) * scale[head])
        heads = part["kernel"].shape[1]
        all_heads = np.concatenate([vector @ part["kernel"][:, other] for other in range(heads)])
        return clipped(y / np.sqrt(np.mean(all_heads**2) + 1e-6) * scale.reshape(heads, -1)[head])

    def clipped(y):
        return y if config.clip is None else np.clip(y, -config.clip, config.clip)

    y = np.full(x.shape, np.nan)
    group = config.heads // config.kv_heads
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            if segments[b, t] == 0:
                continue
            y[b, t] = params["out"]["bias"] if config.biased_output else 0
            seen = [
                s
                for s in range(x_S.shape[1])
                if segments_S[b, s] == segments[b, t] and (s <= t or isinstance(config.mask, Bidirectional))
            ]
            for n in range(config.heads):
                q = project("query", x[b, t], n)
                ks = [project("key", x_S[b, s], n // group) for s in seen]
                if config.position:
                    q = _turn(q, positions[b, t], config.position.base)
                    ks = [_turn(k, positions_S[b, s], config.position.base) for k, s in zip(ks, seen, strict=True)]
                scores = np.array([q @ k / np.sqrt(config.head_dim) for k in ks])
                weights = np.exp(scores - scores.max())
                sink = np.exp(params["sinks"][n] - scores.max()) if config.scores.sinks else 0
                weights /= weights.sum() + sink
                context = sum(w * project("value", x_S[b, s], n // group) for w, s in zip(weights, seen, strict=True))
                y[b, t] += context @ params["out"]["kernel"][n]
    return y


CASES = {
    "multi-head": AttentionConfig(N, H, kv_heads=N),
    "grouped": AttentionConfig(N, H, kv_heads=2),
    "multi-query": AttentionConfig(N, H, kv_heads=1),
    "biases": AttentionConfig(N, H, kv_heads=2, bias=True),
    "biases but for the output": AttentionConfig(N, H, kv_heads=2, bias=True, out_bias=False),
    "a bias for the output only": AttentionConfig(N, H, kv_heads=2, out_bias=True),
    "normalised heads": AttentionConfig(N, H, 2, qk_norm=QKNormConfig(RMSNormConfig()), position=RoPEConfig(10.0)),
    "normalised together": AttentionConfig(N, H, kv_heads=2, qk_norm=QKNormConfig(RMSNormConfig(), over="heads")),
    "each head normalised": AttentionConfig(
        N, H, kv_heads=2, qk_norm=QKNormConfig(LayerNormConfig(bias=False), over="each head"), position=RoPEConfig(10.0)
    ),
    "rotary": AttentionConfig(N, H, kv_heads=2, position=RoPEConfig(100.0)),
    "bidirectional": AttentionConfig(N, H, kv_heads=2, mask=Bidirectional(), position=RoPEConfig()),
    "heads wider than the model": AttentionConfig(3, 6, kv_heads=3),
    "sinks": AttentionConfig(N, H, kv_heads=2, position=RoPEConfig(100.0), scores=ScoresConfig(sinks=True)),
    "clipped": AttentionConfig(N, H, kv_heads=2, position=RoPEConfig(100.0), clip=0.8),
    "normalised and clipped": AttentionConfig(N, H, kv_heads=2, qk_norm=QKNormConfig(RMSNormConfig()), clip=0.8),
}


@pytest.mark.parametrize("case", CASES)
def test_attention_is_the_loop_over_packed_documents(case):
    config = CASES[case]
    params = _weights(config)
    context = Context(SequenceInfo(jnp.asarray(POSITIONS), jnp.asarray(SEGMENTS)))
    apply = jax.jit(config.build(D, Precision(), None).apply)
    y, state = apply({"params": params}, jnp.asarray(X, jnp.float32), context)
    assert state is None
    real = SEGMENTS != 0
    expected = _reference(config, params, X, POSITIONS, SEGMENTS)
    np.testing.assert_allclose(np.asarray(y)[real], expected[real], rtol=1e-4, atol=1e-4)
    assert np.isfinite(y).all()


@pytest.mark.parametrize("mask", [Causal(), Bidirectional()])
def test_without_segments_a_row_is_one_document(mask):
    config = AttentionConfig(N, H, kv_heads=2, mask=mask, position=RoPEConfig())
    params = _weights(config)
    places = np.broadcast_to(np.arange(T), (B, T))
    layer = config.build(D, Precision(), None)
    y, _ = jax.jit(layer.apply)({"params": params}, np.float32(X), Context(SequenceInfo(places)))
    expected = _reference(config, params, X, places, np.ones((B, T)))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_parameters_and_flops_are_counted(case):
    config = CASES[case]
    params = _weights(config)
    assert config.parameters(D) == trees.count(params)
    kernels = sum(leaf.size for name, leaf in trees.named_leaves(params) if name.endswith("kernel"))
    assert config.matrix_flops(D) == 2 * kernels
    # Scores and weighted sum: a multiply-add for each head and feature of each pair.
    pairs = {"Causal": T * (T + 1) / 2, "Bidirectional": T * T}[type(config.mask).__name__]
    assert config.mixing_flops(T) * T == 2 * 2 * config.heads * config.head_dim * pairs


S = 5
MEMORY = GENERATOR.normal(size=(B, S, D))
# The second document of the first row is the longer one here; in the second row there is padding before the document.
MEMORY_SEGMENTS = np.array([[1, 2, 2, 2, 0], [0, 0, 1, 1, 1]])
MEMORY_POSITIONS = np.array([[0, 0, 1, 2, 0], [0, 0, 0, 1, 2]])
CROSS = {
    "multi-head": CrossAttentionConfig(N, H, kv_heads=N),
    "grouped": CrossAttentionConfig(N, H, kv_heads=2, bias=True),
    "rotary": CrossAttentionConfig(N, H, kv_heads=1, position=RoPEConfig(100.0)),
    "sinks": CrossAttentionConfig(N, H, kv_heads=2, scores=ScoresConfig(sinks=True)),
}


def _read(memory: bool) -> Context:
    context = Context(
        SequenceInfo(jnp.asarray(POSITIONS), jnp.asarray(SEGMENTS)),
        encoded=SequenceInfo(jnp.asarray(MEMORY_POSITIONS), jnp.asarray(MEMORY_SEGMENTS)),
    )
    return context.replace(encoded_BSD=jnp.asarray(MEMORY, jnp.float32)) if memory else context


@pytest.mark.parametrize("case", CROSS)
def test_cross_attention_is_the_loop_over_the_documents_of_the_memory(case):
    config = CROSS[case]
    layer, x = config.build(D, Precision(), None), jnp.asarray(X, jnp.float32)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x, _read(True))["params"]
    params = jax.tree.map(lambda leaf: GENERATOR.normal(size=leaf.shape), nn.unbox(shapes))
    assert config.parameters(D) == trees.count(params)
    state = config.allocate(B, S, jnp.float32)
    apply = jax.jit(layer.apply)
    y, state = apply({"params": params}, x, _read(True), state)
    again, same = apply({"params": params}, x, _read(False), state)
    expected = _reference(config, params, X, POSITIONS, SEGMENTS, (MEMORY, MEMORY_POSITIONS, MEMORY_SEGMENTS))
    real = SEGMENTS != 0
    np.testing.assert_allclose(np.asarray(y)[real], expected[real], rtol=1e-4, atol=1e-4)
    # Later calls are not given the memory: the state holds its keys and values.
    np.testing.assert_array_equal(y, again)
    jax.tree.map(np.testing.assert_array_equal, same, state)


def test_flops_of_cross_attention_are_of_two_rows():
    config = CROSS["grouped"]
    kernels = {"query": D * N * H, "out": D * N * H, "key": D * 2 * H, "value": D * 2 * H}
    wanted = 2 * (T * (kernels["query"] + kernels["out"]) + S * (kernels["key"] + kernels["value"]))
    assert config.matrix_flops(D, S / T) * T == wanted
    assert config.mixing_flops(S) * T == 2 * 2 * N * H * T * S


def test_state_is_as_large_as_the_kv_heads_need():
    state = CASES["grouped"].allocate(3, 10, jnp.bfloat16)
    assert trees.size_bytes(state) == 2 * 3 * 10 * 2 * H * 2


def test_initial_scales_are_those_of_the_config():
    config = AttentionConfig(8, 16, kv_heads=8, init=Normal(0.5), out_init=Normal(0.05))
    layer = config.build(128, Precision(), None)
    params = jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, 1, 128)), Context(SequenceInfo(np.zeros((1, 1)))))[
        "params"
    ]
    for name, part in params.items():
        np.testing.assert_allclose(np.std(part["kernel"].value), 0.05 if name == "out" else 0.5, rtol=0.03)


def test_queries_may_start_at_a_scale_of_their_own():
    layer = AttentionConfig(8, 16, kv_heads=8, init=Normal(0.5), query_init=Normal(0.1)).build(128, Precision(), None)
    params = jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, 1, 128)), Context(SequenceInfo(np.zeros((1, 1)))))[
        "params"
    ]
    for name, scale in (("query", 0.1), ("key", 0.5), ("value", 0.5)):
        np.testing.assert_allclose(np.std(params[name]["kernel"].value), scale, rtol=0.03)


def test_scores_and_softmax_are_float32_under_bfloat16():
    config = AttentionConfig(N, H, kv_heads=2)
    layer, context = config.build(D, MIXED, None), Context(SequenceInfo(jnp.asarray(POSITIONS), jnp.asarray(SEGMENTS)))
    variables = {"params": _weights(config)}
    program = jax.make_jaxpr(lambda x: layer.apply(variables, x, context)[0])(jnp.asarray(X, jnp.bfloat16))
    exponentials = [equation for equation in _equations(program.jaxpr) if equation.primitive.name == "exp"]
    assert [equation.invars[0].aval.dtype for equation in exponentials] == [jnp.float32]
    assert program.out_avals[0].dtype == jnp.bfloat16


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in equation.params.values():
            if hasattr(inner, "jaxpr"):
                yield from _equations(inner.jaxpr)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, "kv_heads is 3 and heads is 4: kv_heads must divide heads; set kv_heads to one of"),
        ({"kv_heads": 8}, "kv_heads is 8 and heads is 4"),
        ({"kv_heads": 0}, "kv_heads is 0"),
        ({"heads": -4}, "heads is -4"),
        ({"head_dim": 0}, "head_dim is 0"),
        ({"head_dim": 5, "position": RoPEConfig()}, "head_dim is 5: it must be even, since RoPE rotates pairs"),
    ],
)
def test_bad_values_are_refused(change, message):
    good = AttentionConfig(N, H, kv_heads=2)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(good, **change)


def test_odd_head_size_is_fine_without_rotation():
    assert AttentionConfig(N, 5, kv_heads=2).head_dim == 5

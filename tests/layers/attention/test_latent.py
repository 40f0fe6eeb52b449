"""Latent attention against a loop over batch, heads and queries in numpy, in both of its forms."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.core.dtypes import MIXED, Precision
from llm_jax.layers.attention.kernels import DotProductKernel, PlainKernel
from llm_jax.layers.attention.latent import LatentAttentionConfig, Latents
from llm_jax.layers.attention.masks import Causal
from llm_jax.layers.context import Context
from llm_jax.layers.initialisers import Normal
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.layers.positions.rope_scaling import LinearScaling, YaRNScaling
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models import count
from llm_jax.models.families.deepseek import deepseek

B, T, D, N, Q, R, H, P, V = 2, 6, 8, 3, 7, 5, 4, 2, 6
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(B, T, D))
# Two packed documents and padding in the first row, one document in the second.
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
POSITIONS = np.array([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]])
SEQUENCE = SequenceInfo(jnp.asarray(POSITIONS), jnp.asarray(SEGMENTS))
FULL = LatentAttentionConfig(N, Q, R, H, P, V, position=RoPEConfig(10.0))
CASES = {
    "both ranks": FULL,
    "queries of the stream": dataclasses.replace(FULL, query_rank=None),
    "sharpened": dataclasses.replace(FULL, position=RoPEConfig(10.0, scaling=YaRNScaling(4.0, 4)), sharpening=0.7),
    "a window": dataclasses.replace(FULL, mask=Causal(2)),
}


def _weights(config):
    layer, start = config.build(D, Precision(), None), Context(SequenceInfo(jnp.zeros((1, 1))))
    shapes = jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 1, D)), start)
    return jax.tree.map(lambda leaf: GENERATOR.normal(size=leaf.shape), nn.unbox(shapes["params"]))


def _turn(vector, position, config):
    """Pairs (i, i + P/2) turned; frequencies are tested in test_rope_scaling.py."""
    half = len(vector) // 2
    frequencies, magnitude = config.position.scaling.frequencies(config.position.base, 2 * half, jnp.zeros((1, 1)))
    out = np.empty(2 * half)
    for i in range(half):
        cos, sin = magnitude * np.cos(position * frequencies[i]), magnitude * np.sin(position * frequencies[i])
        out[i] = vector[i] * cos - vector[i + half] * sin
        out[i + half] = vector[i + half] * cos + vector[i] * sin
    return out


def _reference(config, params, x, positions, segments):
    """Equations 9 to 19 of arXiv:2405.04434, one query of one head at a time; padding is left at NaN."""
    kernel = {name: part["kernel"] for name, part in params.items() if "kernel" in part}

    def normal(vector, name):
        return vector / np.sqrt(np.mean(vector**2) + 1e-6) * params[name]["scale"]

    def query(b, t, n):
        c = x[b, t]
        if config.query_rank is not None:
            c = normal(c @ kernel["query_down"], "query_norm")
        turned = _turn(c @ kernel["query_rotary"][:, n], positions[b, t], config)
        return np.concatenate([c @ kernel["query"][:, n], turned])

    def latent(b, s):
        return normal(x[b, s] @ kernel["latent"], "latent_norm")

    def key(b, s, n):
        turned = _turn(x[b, s] @ kernel["key_rotary"], positions[b, s], config)
        return np.concatenate([latent(b, s) @ kernel["key"][:, n], turned])

    y = np.full(x.shape, np.nan)
    sharper = (0.1 * config.sharpening * np.log(4) + 1) ** 2
    for b, t in np.argwhere(segments != 0):
        reach = config.mask.window or T
        seen = [s for s in range(t + 1) if segments[b, s] == segments[b, t] and t - s < reach]
        y[b, t] = 0
        for n in range(config.heads):
            scores = np.array([query(b, t, n) @ key(b, s, n) for s in seen]) * sharper / np.sqrt(H + P)
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            mixed = sum(w * (latent(b, s) @ kernel["value"][:, n]) for w, s in zip(weights, seen, strict=True))
            y[b, t] += mixed @ kernel["out"][n]
    return y


def _apply(config, params, x, context, state=None, precision=None):
    layer = config.build(D, precision or Precision(), None)
    return jax.jit(lambda x, state: layer.apply({"params": params}, x, context, state))(x, state)


@pytest.mark.parametrize("case", CASES)
def test_latent_attention_is_the_loop_over_packed_documents(case):
    config = CASES[case]
    params = _weights(config)
    y, state = _apply(config, params, jnp.asarray(X, jnp.float32), Context(SEQUENCE))
    assert state is None and np.isfinite(y).all()
    real = SEGMENTS != 0
    np.testing.assert_allclose(
        np.asarray(y)[real], _reference(config, params, X, POSITIONS, SEGMENTS)[real], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("absorbed", [True, False])
def test_both_forms_give_from_a_cache_what_the_whole_row_gives(case, absorbed, monkeypatch):
    config = CASES[case]
    params = _weights(config)
    whole, _ = _apply(config, params, jnp.asarray(X, jnp.float32), Context(SEQUENCE))
    monkeypatch.setattr(LatentAttentionConfig, "absorbs", lambda *_: absorbed)
    state = config.allocate(B, T, jnp.float32)
    for start, end in ((0, 4), (4, 5), (5, 6)):
        part = SequenceInfo(SEQUENCE.positions_BT[:, start:end], SEQUENCE.segment_ids_BT[:, start:end])
        slots = SequenceInfo(SEQUENCE.positions_BT, jnp.where(jnp.arange(T) < end, SEQUENCE.segment_ids_BT, 0))
        context = Context(part, slots, jnp.int32(start))
        y, state = _apply(config, params, jnp.asarray(X[:, start:end], jnp.float32), context, state)
        real = SEGMENTS[:, start:end] != 0
        np.testing.assert_allclose(np.asarray(y)[real], whole[:, start:end][real], rtol=1e-4, atol=1e-5)


def test_few_queries_are_compared_among_the_short_vectors_and_many_are_not():
    config = LatentAttentionConfig(128, 1536)
    assert config.absorbs(1, 1) is False  # nothing is saved: there is one key to make
    assert config.absorbs(1, 4) and config.absorbs(1, 8192) and config.absorbs(128, 8192)
    assert not config.absorbs(8192, 8192) and not config.absorbs(256, 8192)


@pytest.mark.parametrize("length", [1, 24])
def test_the_form_is_that_of_fewer_flops(length, monkeypatch):
    config = dataclasses.replace(FULL, heads=8, rank=48, head_dim=16, value_dim=16, kernel=PlainKernel())
    params, slots = _weights(config), SequenceInfo(*jnp.ones((2, 1, 64), jnp.int32))
    context = Context(SequenceInfo(*jnp.ones((2, 1, length), jnp.int32)), slots, jnp.int32(0))
    chosen = config.absorbs(length, 64)

    def flops(absorbed):
        monkeypatch.setattr(LatentAttentionConfig, "absorbs", lambda *_: absorbed)
        layer, state = config.build(D, Precision(), None), config.allocate(1, 64, jnp.float32)
        run = jax.jit(lambda x: layer.apply({"params": params}, x, context, state)[0])
        return run.lower(jnp.zeros((1, length, D))).cost_analysis()["flops"]

    assert chosen == (length == 1) == (flops(True) < flops(False))


@pytest.mark.parametrize("precision", [Precision(), MIXED])
def test_the_cache_of_a_token_is_one_short_vector_and_one_rotated_key(precision):
    config = deepseek(
        3, N, D, hidden=8, query_rank=Q, rank=R, head_dim=H, rotary_dim=P, value_dim=V, vocab_size=11, max_length=32
    )
    assert count.cache_bytes(config, 10, precision) == 3 * 10 * (R + P) * precision.dtype.itemsize
    # DeepSeek-V2, table 1: 9/2 of the head size of 128, here its 512 + 64 numbers.
    assert trees.size_bytes(LatentAttentionConfig(128, 1536).allocate(1, 1, jnp.bfloat16)) == 2 * 9 * 128 // 2


def test_entries_land_in_their_slots_and_take_the_type_of_the_cache():
    old = jnp.full((2, 5, 3), 7.0, jnp.bfloat16)
    state = jax.jit(lambda slot: Latents(old).write(jnp.ones((2, 2, 3)), slot))(2)
    assert state.c_BSL.dtype == jnp.bfloat16
    np.testing.assert_array_equal(state.c_BSL[:, 2:4], 1)
    np.testing.assert_array_equal(state.c_BSL[:, [0, 1, 4]], 7)


@pytest.mark.parametrize("case", CASES)
def test_parameters_and_flops_are_counted(case):
    config = CASES[case]
    params = _weights(config)
    assert config.parameters(D) == trees.count(params)
    kernels = sum(leaf.size for name, leaf in trees.named_leaves(params) if name.endswith("kernel"))
    assert config.matrix_flops(D) == 2 * kernels
    pairs = sum(min(t + 1, config.mask.window or T) for t in range(T))
    np.testing.assert_allclose(config.mixing_flops(T) * T, 2 * N * (H + P + V) * pairs)


def test_initial_scales_are_those_of_the_config():
    config = LatentAttentionConfig(8, 32, 32, 16, 16, 16, init=Normal(0.5), out_init=Normal(0.05))
    layer, start = config.build(64, Precision(), None), Context(SequenceInfo(jnp.zeros((1, 1))))
    params = jax.jit(lambda: layer.init(jax.random.key(0), jnp.zeros((1, 1, 64)), start)["params"])()
    kernels = {name: part["kernel"].value for name, part in params.items() if "kernel" in part}
    assert len(kernels) == 8
    for name, kernel in kernels.items():
        np.testing.assert_allclose(np.std(kernel), 0.05 if name == "out" else 0.5, rtol=0.1)


@pytest.mark.parametrize("absorbed", [True, False])
def test_bfloat16_is_near_to_float32(absorbed, monkeypatch):
    monkeypatch.setattr(LatentAttentionConfig, "absorbs", lambda *_: absorbed)
    params, x = jax.tree.map(lambda leaf: 0.4 * leaf, _weights(FULL)), jnp.asarray(X, jnp.float32)
    exact, _ = _apply(FULL, params, x, Context(SEQUENCE))
    context = Context(SEQUENCE, SEQUENCE, jnp.int32(0))
    y, _ = _apply(FULL, params, x, context, FULL.allocate(B, T, jnp.bfloat16), MIXED)
    assert y.dtype == jnp.bfloat16
    real = SEGMENTS != 0
    assert np.abs(np.asarray(y, np.float32) - exact)[real].max() < 0.05 * np.abs(exact[real]).max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"query_rank": 0}, "query_rank is 0"),
        ({"value_dim": -1}, "value_dim is -1"),
        ({"rotary_dim": 3}, "rotary_dim is 3: it must be even"),
        ({"position": RoPEConfig(features=2)}, "position.features is 2: `rotary_dim` sets"),
        ({"sharpening": 1.0}, "sharpening is 1.0 and position.scaling is Unscaled.*: sharpening requires YaRNScaling"),
        ({"sharpening": 1.0, "position": RoPEConfig(scaling=LinearScaling(2.0))}, "sharpening requires YaRNScaling"),
    ],
)
def test_bad_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FULL, **change)


def test_a_kernel_that_takes_one_size_only_is_refused():
    with pytest.raises(ValueError, match="kernel is DotProductKernel, .* set kernel to BlockedKernel"):
        LatentAttentionConfig(4, kernel=DotProductKernel())

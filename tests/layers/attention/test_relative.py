"""Attention by distance and part against a loop over batch, queries and heads in numpy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.core.dtypes import MIXED, Precision
from llm_jax.layers.attention.masks import Bidirectional, Causal, Permuted
from llm_jax.layers.attention.relative import RelativeAttentionConfig
from llm_jax.layers.context import Context
from llm_jax.layers.initialisers import Normal
from llm_jax.layers.sequence import SequenceInfo

B, T, D, N, H = 2, 7, 8, 2, 3
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(B, T, D))
# Two packed documents, padding and a token that asks in the first row; padding before one document in the second.
SEQUENCE = SequenceInfo(
    positions_BT=jnp.array([[0, 1, 2, 0, 1, 0, 1], [0, 0, 1, 2, 3, 4, 2]]),
    segment_ids_BT=jnp.array([[1, 1, 1, 2, 2, 0, 1], [0, 1, 1, 1, 1, 1, 1]]),
    types_BT=jnp.array([[0, 1, 1, 0, 5, 0, 1], [0, 0, 0, 1, 1, 1, 1]]),
    order_BT=jnp.array([[2, 1, 3, 0, 1, 0, 1], [0, 0, 2, 1, 0, 3, 1]]),
    targets_BT=jnp.array([[False] * 6 + [True]] * 2),
)
PLAIN = SequenceInfo(jnp.broadcast_to(jnp.arange(T), (B, T)))
CASES = {
    "two streams": (RelativeAttentionConfig(N, H), SEQUENCE),
    "far distances alike": (RelativeAttentionConfig(N, H, farthest=1), SEQUENCE),
    "farther than the row": (RelativeAttentionConfig(N, H, farthest=50), SEQUENCE),
    "one part": (RelativeAttentionConfig(N, H), SEQUENCE.replace(types_BT=None)),
    "plain": (RelativeAttentionConfig(N, H), PLAIN),
    "causal": (RelativeAttentionConfig(N, H, Causal()), PLAIN),
    "bidirectional": (RelativeAttentionConfig(N, H, Bidirectional()), SEQUENCE.replace(order_BT=None, targets_BT=None)),
}
CONFIG = RelativeAttentionConfig(N, H)


def _weights(config=CONFIG):
    module = config.build(D, Precision(), None)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((B, T, D)), Context(PLAIN))
    return jax.tree.map(lambda leaf: GENERATOR.normal(size=leaf.shape), nn.unbox(shapes["params"]))


def _sinusoid(distance):
    angles = distance * 10_000.0 ** (-2 * np.arange(D // 2) / D)
    return np.concatenate([np.sin(angles), np.cos(angles)])


def _reference(config, params, x, sequence):
    """Yang et al. 2019, A.2 and 2.5, one query of one head at a time."""
    allowed = np.broadcast_to(config.mask.across(sequence, sequence), (B, T, T))
    positions = np.asarray(sequence.positions_BT)
    types = np.zeros((B, T)) if sequence.types_BT is None else np.asarray(sequence.types_BT)
    y = np.zeros(x.shape)
    for b, t, n in np.ndindex(B, T, N):
        seen = np.flatnonzero(allowed[b, t])
        if not len(seen):
            continue
        kernel = {name: params[name]["kernel"][:, n] for name in ("query", "key", "value", "distance")}
        bias = {name: params[name]["bias"][n] for name in ("by_content", "by_distance", "by_part")}
        q, scores = x[b, t] @ kernel["query"], []
        for s in seen:
            distance = positions[b, t] - positions[b, s]
            if config.farthest:
                distance = max(-config.farthest, min(config.farthest, distance))
            score = (q + bias["by_content"]) @ (x[b, s] @ kernel["key"])
            score += (q + bias["by_distance"]) @ (_sinusoid(distance) @ kernel["distance"])
            score += (q + bias["by_part"]) @ params["parts"][int(types[b, t] != types[b, s]), n]
            scores.append(score / np.sqrt(H))
        weights = np.exp(scores - np.max(scores))
        weights /= weights.sum()
        y[b, t] += (
            sum(w * (x[b, s] @ kernel["value"]) for w, s in zip(weights, seen, strict=True))
            @ (params["out"]["kernel"][n])
        )
    return y


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_loop(case):
    config, sequence = CASES[case]
    params = _weights(config)
    module = config.build(D, Precision(), None)
    y, state = jax.jit(lambda x: module.apply({"params": params}, x, Context(sequence)))(jnp.asarray(X, jnp.float32))
    assert state is None and np.isfinite(y).all()
    real = np.ones((B, T), bool) if sequence.segment_ids_BT is None else np.asarray(sequence.segment_ids_BT) != 0
    np.testing.assert_allclose(np.asarray(y)[real], _reference(config, params, X, sequence)[real], rtol=1e-4, atol=1e-4)


def test_one_part_for_all_is_no_part():
    params, module = _weights(), CONFIG.build(D, Precision(), None)
    apply = jax.jit(
        lambda sequence: module.apply({"params": params}, jnp.asarray(X, jnp.float32), Context(sequence))[0]
    )
    same = apply(PLAIN.replace(types_BT=jnp.full((B, T), 3)))
    np.testing.assert_allclose(same, apply(PLAIN), rtol=1e-4, atol=1e-5)


def test_the_first_token_asked_for_is_told_nothing_where_nothing_is_given():
    # Two tokens, the second before the first, and one that asks for the second.
    sequence = SequenceInfo(
        positions_BT=jnp.array([[0, 1, 1]]),
        order_BT=jnp.array([[2, 1, 1]]),
        targets_BT=jnp.array([[False, False, True]]),
    )
    params, module = _weights(), CONFIG.build(D, Precision(), None)
    asked = lambda x: module.apply({"params": params}, x, Context(sequence))[0][0, 2]  # noqa: E731
    y, gradient = jax.jit(lambda x: (asked(x), jax.jacrev(asked)(x)))(np.float32(X[:1, :3]))
    assert (np.asarray(gradient) == 0).all() and (y == 0).all()


def test_gradients_are_finite_under_bfloat16():
    params, module = _weights(), CONFIG.build(D, MIXED, None)

    def loss(params, x):
        y, _ = module.apply({"params": params}, x, Context(SEQUENCE))
        assert y.dtype == jnp.bfloat16
        return jnp.sum(jnp.square(y.astype(jnp.float32)))

    x = jnp.asarray(X, jnp.bfloat16)
    for path, leaf in trees.named_leaves(jax.jit(jax.grad(loss))(params, x)):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


def test_parameters_and_flops_are_counted():
    params = _weights()
    assert CONFIG.parameters(D) == trees.count(params)
    kernels = sum(params[name]["kernel"].size for name in ("query", "key", "value", "out"))
    assert CONFIG.matrix_flops(D) == 2 * kernels
    # Scores and weighted sum of all pairs, and for every token the scores of twice as many distances as tokens.
    assert CONFIG.mixing_flops(T) == 2 * N * H * (T + T + 2 * T)
    assert RelativeAttentionConfig(N, H, Causal(), farthest=2).mixing_flops(T) == 2 * N * H * (T + 1 + 2 * 2)


def test_initial_scales_are_those_of_the_config():
    config = RelativeAttentionConfig(8, 16, init=Normal(0.5), out_init=Normal(0.05))
    layer = config.build(128, Precision(), None)
    params = jax.jit(lambda: layer.init(jax.random.key(0), jnp.zeros((B, T, 128)), Context(PLAIN))["params"])()
    for path, leaf in trees.named_leaves(nn.unbox(params)):
        rtol = 0.03 if path.endswith("kernel") else 0.2
        np.testing.assert_allclose(np.std(leaf), 0.05 if path.startswith("out") else 0.5, rtol=rtol, err_msg=path)


def test_there_is_no_cache():
    state = CONFIG.allocate(B, 10, jnp.float32)
    assert trees.size_bytes(state) == 0
    module = CONFIG.build(D, Precision(), None)
    with pytest.raises(ValueError, match="has no KV cache: pass whole sequences"):
        jax.eval_shape(module.apply, {"params": _weights()}, np.float32(X), Context(PLAIN), state)


@pytest.mark.parametrize("change", [{"heads": 0}, {"head_dim": -1}, {"farthest": 0}])
def test_bad_values_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} is {next(iter(change.values()))}"):
        RelativeAttentionConfig(**{"heads": N, "head_dim": H, "mask": Permuted()} | change)

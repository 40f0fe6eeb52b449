"""The mixer of Mamba-2 against its equations, written out token by token."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.core.dtypes import Precision
from llm_jax.layers.context import Context
from llm_jax.layers.recurrent.mamba2 import Mamba2Config, TimeScales
from llm_jax.layers.recurrent.matrix_recurrence import ChunkwiseForm, ParallelForm, RecurrentForm
from llm_jax.layers.sequence import SequenceInfo

B, T, D, N, P, K, H = 2, 10, 6, 4, 3, 2, 5
CONFIG = Mamba2Config(N, P, K, H, bias=True, step_limit=(0.1, 1.5))
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(B, T, D)).astype(np.float32)
SEGMENTS = np.array([[1, 1, 1, 1, 1, 2, 2, 2, 0, 0], [0, 0, 1, 1, 2, 2, 2, 2, 2, 3]], np.int32)
PACKED = SequenceInfo(np.zeros((B, T), np.int32), SEGMENTS)
REAL = (SEGMENTS != 0)[..., None]
FORMS = {"parallel": ParallelForm(), "chunks": ChunkwiseForm(4), "recurrent": RecurrentForm()}


def _module(config):
    return config.build(D, Precision(), None)


def _params(config):
    shapes = nn.unbox(jax.eval_shape(_module(config).init, jax.random.key(0), X, Context(PACKED))["params"])
    generator = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(0.7 * generator.normal(size=leaf.shape), jnp.float32), shapes)


PARAMS = _params(CONFIG)


def _silu(x):
    return x / (1 + np.exp(-x))


def _document(params, x):
    """The mixer on one document [L, D], as in Dao and Gu 2024: h_t = exp(A delta_t) h_(t-1) + delta_t B_t x_t, y_t =
    C_t h_t + D x_t."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in trees.named_leaves(params)}
    project = lambda name, x: x @ p[f"{name}/kernel"] + p[f"{name}/bias"]  # noqa: E731
    inputs = np.concatenate([project(name, x) for name in ("value", "key", "query")], axis=-1)
    padded = np.concatenate([np.zeros((3, inputs.shape[-1])), inputs])
    mixed = sum(padded[tap : tap + len(x)] * p["convolution/kernel"][tap] for tap in range(4))
    value, key, query = np.split(_silu(mixed + p["convolution/bias"]), [N * P, N * P + K * H], axis=-1)
    steps = np.clip(np.logaddexp(0, project("step", x) + p["step_bias"]), 0.1, 1.5)
    state, y = np.zeros((N, H, P)), np.zeros((len(x), N, P))
    for t in range(len(x)):
        for head in range(N):
            group = slice(head // (N // K) * H, (head // (N // K) + 1) * H)
            own = value[t, head * P : (head + 1) * P]
            step = steps[t, head]
            state[head] *= np.exp(-np.exp(p["log_rate"][head]) * step)
            state[head] += step * np.outer(key[t, group], own)
            y[t, head] = query[t, group] @ state[head] + p["skip"][head] * own
    gated = (y.reshape(len(x), -1) * _silu(project("gate", x))).reshape(len(x), K, -1)
    gated /= np.sqrt((gated**2).mean(axis=-1, keepdims=True) + CONFIG.epsilon)
    return project("out", gated.reshape(len(x), -1) * p["norm/scale"])


def _reference(params, x, segments):
    y = np.zeros(x.shape)
    for row in range(B):
        for document in range(1, segments.max() + 1):
            own = segments[row] == document
            if own.any():
                y[row, own] = _document(params, np.asarray(x[row, own], np.float64))
    return y


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_mixer_is_that_of_the_paper(form):
    module = _module(dataclasses.replace(CONFIG, form=form))
    y, state = jax.jit(module.apply)({"params": PARAMS}, X, Context(PACKED))
    assert state is None
    np.testing.assert_allclose(y * REAL, _reference(PARAMS, X, SEGMENTS) * REAL, rtol=1e-4, atol=1e-5)


def test_gradients_of_all_forms_are_equal():
    weight = GENERATOR.normal(size=(B, T, D)) * REAL

    def gradients(form):
        module = _module(dataclasses.replace(CONFIG, form=form))
        loss = lambda params, x: jnp.sum(module.apply({"params": params}, x, Context(PACKED))[0] * weight)  # noqa: E731
        return jax.jit(jax.grad(loss, argnums=(0, 1)))(PARAMS, X)

    expected = gradients(RecurrentForm())
    for form in (ParallelForm(), ChunkwiseForm(4)):
        pairs = zip(trees.named_leaves(gradients(form)), trees.named_leaves(expected), strict=True)
        for (path, actual), (_, wanted) in pairs:
            scale = np.abs(wanted).max()
            assert scale > 1e-2, path
            np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5 * scale, err_msg=path)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_rows_of_different_length_go_on_from_their_own_last_token(form):
    # Prompts of 5 and 3 tokens with padding at the right, then a window of 3, then single steps.
    module = _module(dataclasses.replace(CONFIG, form=form))
    apply, state = jax.jit(module.apply), CONFIG.allocate(B, T, jnp.float32)
    lengths, parts = (5, 3), [[], []]
    for start, end in ((0, 5), (5, 8), (8, 9), (9, 10)):
        real = np.ones((B, end - start), np.int32)
        if start == 0:
            real = (np.arange(5) < np.array(lengths)[:, None]).astype(np.int32)
        sequence = SequenceInfo(jnp.zeros_like(real), jnp.asarray(real))
        y, state = apply({"params": PARAMS}, X[:, start:end], Context(sequence), state)
        for row in range(B):
            parts[row].append(np.asarray(y[row])[real[row] != 0])
    for row, length in enumerate(lengths):
        tokens = np.concatenate([np.arange(length), np.arange(5, T)])
        expected = _document(PARAMS, np.asarray(X[row, tokens], np.float64))
        np.testing.assert_allclose(np.concatenate(parts[row]), expected, rtol=1e-4, atol=1e-5)


def test_the_state_has_one_size_for_any_number_of_tokens():
    for slots in (1, 1000):
        state = CONFIG.allocate(B, slots, jnp.bfloat16)
        assert state.recurrence.matrix_BNHP.shape == (B, N, H, P) and state.recurrence.matrix_BNHP.dtype == jnp.float32
        assert state.recent.x_BPC.shape == (B, 3, N * P + 2 * K * H) and state.recent.x_BPC.dtype == jnp.bfloat16


def test_fresh_heads_forget_as_fast_as_the_config_says():
    config = Mamba2Config(512, 1, time_scales=TimeScales(steps=(0.01, 0.1), rates=(2.0, 8.0)))
    params = nn.unbox(jax.jit(_module(config).init)(jax.random.key(0), X, Context(PACKED))["params"])
    steps, rates = np.logaddexp(0, params["step_bias"]), np.exp(params["log_rate"])
    assert 0.0099 < steps.min() < 0.011 and 0.09 < steps.max() < 0.101
    np.testing.assert_allclose(np.median(steps), math.sqrt(0.01 * 0.1), rtol=0.2)
    assert 1.99 < rates.min() < 2.1 and 7.9 < rates.max() < 8.01
    np.testing.assert_array_equal(params["skip"], 1)


def test_parameters_and_flops():
    assert CONFIG.parameters(D) == trees.count(PARAMS)
    plain = dataclasses.replace(CONFIG, bias=False)
    matrices = sum(leaf.size for leaf in jax.tree.leaves(_params(plain)) if leaf.ndim == 2 and leaf.shape[0] != 4)
    assert plain.matrix_flops(D) == 2 * matrices
    assert plain.mixing_flops(100) == ChunkwiseForm().flops(100, K, N, H, P)
    assert CONFIG.shape == "4 of 3, state of 5"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 3}, "groups is 3 and heads is 4: groups must divide heads"),
        ({"state_size": 0}, "state_size is 0"),
        ({"step_limit": (1.0, 0.5)}, "step_limit is 1.0 to 0.5: it must be an ascending range"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **options)
    with pytest.raises(ValueError, match="steps are 0 to 1: both must be greater than 0"):
        TimeScales(steps=(0, 1))

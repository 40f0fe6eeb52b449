"""The recurrent block of Griffin against its equations, one token at a time in numpy."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.core.dtypes import MIXED, Precision
from llm_jax.layers.context import Context
from llm_jax.layers.recurrent.convolution import ConvolutionConfig
from llm_jax.layers.recurrent.rg_lru import RGLRUConfig
from llm_jax.layers.sequence import SequenceInfo

B, T, D = 3, 8, 5
CONFIG = RGLRUConfig(6, 2, ConvolutionConfig(3))
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(B, T, D))
# Packed documents and padding at the end; padding at the start; one document.
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 0, 0], [0, 0, 1, 1, 1, 1, 2, 2], [1] * T])


def _place(segments):
    return Context(SequenceInfo(jnp.zeros(segments.shape, jnp.int32), jnp.asarray(segments, jnp.int32)))


def _init(config, key=0, width=D):
    module = config.build(width, Precision(), None)
    return nn.unbox(jax.jit(module.init)(jax.random.key(key), jnp.zeros((1, 2, width)), _place(np.ones((1, 2)))))


def _weights(config=CONFIG):
    shapes = jax.eval_shape(lambda: _init(config)["params"])
    generator = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: generator.normal(size=leaf.shape), shapes)


PARAMS = _weights()


def _run(x, segments, state=None, params=PARAMS, precision=Precision()):  # noqa: B008
    module = CONFIG.build(D, precision, None)
    return jax.jit(module.apply)({"params": params}, jnp.asarray(x, jnp.float32), _place(segments), state)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _reference(x, segments):
    """Section 2.4, equations 1 to 4, document by document; NaN at padding."""
    y = np.full(x.shape, np.nan)
    for row in range(len(x)):
        for document in set(segments[row]) - {0}:
            tokens = np.flatnonzero(segments[row] == document)
            y[row, tokens] = _document(x[row, tokens])
    return y


def _document(x):
    linear = lambda name, x: x @ PARAMS[name]["kernel"] + PARAMS[name]["bias"]  # noqa: E731
    size = CONFIG.channels // CONFIG.blocks
    gate, inputs = linear("gate", x), linear("input", x)
    gate = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    h, out = np.zeros(CONFIG.channels), []
    for t in range(len(x)):
        u = PARAMS["convolution"]["bias"].copy()
        for back in range(min(t + 1, 3)):
            u += PARAMS["convolution"]["kernel"][2 - back] * inputs[t - back]
        gates = {}
        for name in ("input_gate", "decay_gate"):
            blocks = [
                u[n * size : (n + 1) * size] @ PARAMS[name]["kernel"][n] + PARAMS[name]["bias"][n]
                for n in range(CONFIG.blocks)
            ]
            gates[name] = _sigmoid(np.concatenate(blocks))
        a = np.exp(-8 * gates["decay_gate"] * np.log1p(np.exp(PARAMS["decay"])))
        scale = 1 if t == 0 else np.sqrt(1 - a**2)
        h = (0 if t == 0 else a * h) + scale * gates["input_gate"] * u
        out.append(linear("out", h * gate[t]))
    return np.stack(out)


EXPECTED, REAL = _reference(X, SEGMENTS), SEGMENTS != 0


def test_the_equations_give_the_same():
    y, state = jax.jit(_run)(X, SEGMENTS)
    assert state is None
    np.testing.assert_allclose(y[REAL], EXPECTED[REAL], rtol=1e-4, atol=1e-4)
    assert np.isfinite(y).all()


@pytest.mark.parametrize("chunks", [[T], [1] * T, [4, 1, 3]], ids=str)
def test_calls_continue_each_other(chunks):
    state, parts, start, step = CONFIG.allocate(B, 0, jnp.float32), [], 0, jax.jit(_run)
    for tokens in chunks:
        span = slice(start, start + tokens)
        part, state = step(X[:, span], SEGMENTS[:, span], state)
        parts.append(part)
        start += tokens
    np.testing.assert_allclose(np.concatenate(parts, axis=1)[REAL], EXPECTED[REAL], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(state.segment_ids_B, [2, 2, 1])


def test_the_state_is_float32_and_of_one_size_for_any_number_of_tokens():
    few, many = (jax.eval_shape(lambda slots=slots: CONFIG.allocate(B, slots, jnp.bfloat16)) for slots in (1, 10**9))
    assert few == many
    assert few.h_BR.dtype == jnp.float32 and few.recent.x_BPC.dtype == jnp.bfloat16


def test_mixed_precision_is_near():
    y, _ = _run(X, SEGMENTS, precision=MIXED)
    assert y.dtype == jnp.bfloat16
    error = np.abs(np.asarray(y, np.float32) - EXPECTED)[REAL].max()
    assert 0 < error < 0.03 * np.abs(EXPECTED[REAL]).max()


def test_decays_start_between_those_of_the_paper():
    config = dataclasses.replace(CONFIG, channels=2000)
    rate = np.asarray(_init(config)["params"]["decay"], float)
    powers = np.exp(-8 * np.log1p(np.exp(rate)))
    assert 0.9 < powers.min() < 0.902 and 0.997 < powers.max() <= 0.999
    np.testing.assert_allclose(powers.mean(), 0.9495, atol=3e-3)


def test_gradients_are_finite_where_nothing_decays():
    # Gates so far shut that a rounds to 1, where the square root of 1 - a^2 has no slope.
    shut = PARAMS | {"decay_gate": PARAMS["decay_gate"] | {"bias": np.full((2, 3), -200.0)}}
    loss = lambda params, x: jnp.sum(_run(x, SEGMENTS, params=params)[0] * REAL[:, :, None])  # noqa: E731
    gradients = jax.jit(jax.grad(loss, (0, 1)))(shut, jnp.asarray(X))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_parameters_and_flops_are_counted():
    assert CONFIG.parameters(D) == trees.count(PARAMS)
    matrices = ("gate", "input", "out", "input_gate", "decay_gate")
    assert CONFIG.matrix_flops(D) == 2 * sum(PARAMS[name]["kernel"].size for name in matrices)
    assert CONFIG.shape == "6 recurrent channels, 2 blocks"


def test_blocks_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="blocks is 4 and channels is 6"):
        RGLRUConfig(6, 4)
    with pytest.raises(ValueError, match="did you mean 'gelu'"):
        RGLRUConfig(6, 2, activation="gelo")

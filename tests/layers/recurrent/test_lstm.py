"""The LSTM against its equations in numpy, and against torch's where that is installed."""

import importlib.util

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.core.dtypes import MIXED, Precision
from llm_jax.layers.context import Context
from llm_jax.layers.recurrent.lstm import LSTMConfig
from llm_jax.layers.sequence import SequenceInfo

B, T, D = 3, 8, 5
CONFIG = LSTMConfig(D)
X = np.random.default_rng(0).normal(size=(B, T, D))
# Packed documents, with padding between them and at the end; padding at the start; one document.
SEGMENTS = np.array([[1, 1, 1, 0, 2, 2, 0, 0], [0, 0, 1, 1, 1, 1, 2, 2], [1] * T])


def _weights():
    module = CONFIG.build(D, Precision(), None)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(X), _place(SEGMENTS))
    generator = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: 0.7 * generator.normal(size=leaf.shape), nn.unbox(shapes["params"]))


def _place(segments):
    return Context(SequenceInfo(jnp.zeros(segments.shape, jnp.int32), jnp.asarray(segments, jnp.int32)))


PARAMS = _weights()


def _run(x, segments, state=None, params=PARAMS, precision=Precision()):  # noqa: B008
    module = CONFIG.build(D, precision, None)
    return module.apply({"params": params}, jnp.asarray(x, jnp.float32), _place(segments), state)


def _reference(x, segments):
    """Zaremba et al. 2014, section 3.1; NaN at padding."""
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    y = np.full(x.shape, np.nan)
    for row in range(len(x)):
        document, h, c = 0, np.zeros(D), np.zeros(D)
        for t in range(x.shape[1]):
            if segments[row, t] == 0:
                continue
            if segments[row, t] != document:
                document, h, c = segments[row, t], np.zeros(D), np.zeros(D)
            i, f, g, o = (
                x[row, t] @ PARAMS["input"]["kernel"][:, gate]
                + h @ PARAMS["cell"]["recurrent"]["kernel"][:, gate]
                + PARAMS["input"]["bias"][gate]
                for gate in range(4)
            )
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            y[row, t] = h
    return y


EXPECTED, REAL = _reference(X, SEGMENTS), SEGMENTS != 0


def test_the_equations_give_the_same():
    y, state = jax.jit(_run)(X, SEGMENTS)
    assert state is None
    np.testing.assert_allclose(y[REAL], EXPECTED[REAL], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunks", [[T], [1] * T, [4, 1, 3]], ids=str)
def test_calls_continue_each_other(chunks):
    state, parts, start, step = CONFIG.allocate(B, 0, jnp.float32), [], 0, jax.jit(_run)
    for tokens in chunks:
        span = slice(start, start + tokens)
        part, state = step(X[:, span], SEGMENTS[:, span], state)
        parts.append(part)
        start += tokens
    np.testing.assert_allclose(np.concatenate(parts, axis=1)[REAL], EXPECTED[REAL], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(state.segment_ids_B, [2, 2, 1])


def test_torch_gives_the_same_values_and_gradients():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed: the equations above are the reference")
    import torch

    theirs = torch.nn.LSTM(D, D, batch_first=True)
    # Theirs: [gate and feature, input], gates in the same order, and a second bias that adds to the first.
    ours = {
        "weight_ih_l0": PARAMS["input"]["kernel"].reshape(D, 4 * D).T,
        "weight_hh_l0": PARAMS["cell"]["recurrent"]["kernel"].reshape(D, 4 * D).T,
        "bias_ih_l0": PARAMS["input"]["bias"].reshape(4 * D),
        "bias_hh_l0": np.zeros(4 * D),
    }
    theirs.load_state_dict({name: torch.tensor(np.ascontiguousarray(array)) for name, array in ours.items()})
    weight = np.random.default_rng(2).normal(size=X.shape).astype(np.float32)
    expected, _ = theirs(torch.tensor(X, dtype=torch.float32))
    (expected * torch.tensor(weight)).sum().backward()

    def loss(params):
        y, _ = _run(X, np.ones_like(SEGMENTS), params=params)
        return jnp.sum(y * weight), y

    gradients, y = jax.jit(jax.grad(loss, has_aux=True))(PARAMS)
    np.testing.assert_allclose(y, expected.detach(), rtol=1e-5, atol=1e-5)
    for name, found in (
        ("weight_ih_l0", gradients["input"]["kernel"].reshape(D, 4 * D).T),
        ("weight_hh_l0", gradients["cell"]["recurrent"]["kernel"].reshape(D, 4 * D).T),
        ("bias_ih_l0", gradients["input"]["bias"].reshape(4 * D)),
    ):
        np.testing.assert_allclose(found, getattr(theirs, name).grad, rtol=1e-4, atol=1e-4, err_msg=name)


def test_the_state_is_of_one_size_for_any_number_of_tokens():
    few, many = (jax.eval_shape(lambda slots=slots: CONFIG.allocate(B, slots, jnp.bfloat16)) for slots in (1, 10**9))
    assert few == many
    assert few.c_BH.dtype == jnp.float32 and few.h_BH.dtype == jnp.bfloat16


def test_mixed_precision_is_near():
    y, state = _run(X, SEGMENTS, CONFIG.allocate(B, 0, jnp.bfloat16), precision=MIXED)
    assert y.dtype == state.h_BH.dtype == jnp.bfloat16
    assert 0 < np.abs(np.asarray(y, np.float32) - EXPECTED)[REAL].max() < 0.03


def test_parameters_and_flops_are_counted():
    assert CONFIG.parameters(D) == trees.count(PARAMS)
    kernels = PARAMS["input"]["kernel"].size + PARAMS["cell"]["recurrent"]["kernel"].size
    assert CONFIG.matrix_flops(D) == 2 * kernels


def test_cells_that_are_not_as_wide_as_the_stream_are_refused():
    for ask in (lambda: LSTMConfig(4).parameters(D), lambda: LSTMConfig(4).build(D, Precision(), None)):
        with pytest.raises(ValueError, match="mixer.hidden is 4 and the model's width is 5"):
            ask()

"""The convolution against a loop over rows, tokens and taps in numpy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.core.dtypes import MIXED, Precision
from llm_jax.layers.initialisers import FanIn
from llm_jax.layers.recurrent.convolution import ConvolutionConfig
from llm_jax.layers.sequence import SequenceInfo

B, T, C = 3, 9, 5
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(B, T, C))
# Packed documents and padding at the end; padding at the start; a single document.
SEGMENTS = np.array([[1, 1, 1, 1, 1, 2, 2, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1, 2], [1] * T])
CASES = {
    "four taps": ConvolutionConfig(),
    "two, no bias": ConvolutionConfig(2, bias=False),
    "one": ConvolutionConfig(1),
}
HOLES = np.array([[1, 0, 1, 0, 0, 1, 1, 2, 2], [0, 1, 0, 0, 0, 1, 1, 0, 1], [1, 1, 1, 1, 0, 0, 0, 0, 0]])


@pytest.fixture(params=CASES)
def config(request):
    return CASES[request.param]


def _weights(config):
    shapes = jax.eval_shape(config.build(C, Precision(), None).init, jax.random.key(0), X, _place(SEGMENTS))
    generator = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: generator.normal(size=leaf.shape), nn.unbox(shapes["params"]))


def _place(segments):
    return SequenceInfo(np.zeros(segments.shape, np.int32), np.int32(segments))


def _run(config, params, x, sequence, state=None, precision=Precision()):  # noqa: B008
    layer = config.build(C, precision, None)
    return jax.jit(layer.apply)({"params": params}, jnp.asarray(x, jnp.float32), sequence, state)


def _reference(config, params, x, segments):
    """Each real token from the earlier real ones of its document; zeros at padding."""
    y = np.zeros(x.shape)
    for row, token in np.ndindex(segments.shape):
        if segments[row, token]:
            own = [x[row, s] for s in range(token + 1) if segments[row, s] == segments[row, token]]
            for back, value in enumerate(reversed(own[-config.taps :])):
                y[row, token] += params["kernel"][config.taps - 1 - back] * value
            y[row, token] += params["bias"] if config.bias else 0
    return y


def test_a_loop_gives_the_same(config):
    params = _weights(config)
    y, state = _run(config, params, X, _place(SEGMENTS))
    assert state is None
    y, real = np.asarray(y), SEGMENTS != 0
    np.testing.assert_allclose(y[real], _reference(config, params, X, SEGMENTS)[real], rtol=1e-5, atol=1e-5)
    assert np.isfinite(y).all()


def test_a_row_without_segments_is_one_document(config):
    params, one = _weights(config), np.ones_like(SEGMENTS)
    y, _ = _run(config, params, X, SequenceInfo(jnp.zeros((B, T), jnp.int32)))
    np.testing.assert_allclose(y, _reference(config, params, X, one), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("segments", [SEGMENTS, HOLES], ids=["padding around", "padding within"])
@pytest.mark.parametrize("chunks", [[T], [1] * T, [4, 2, 3]], ids=str)
def test_calls_continue_each_other(config, segments, chunks):
    params, state = _weights(config), config.allocate(B, C, jnp.float32)
    step, parts, start = jax.jit(lambda x, sequence, state: _run(config, params, x, sequence, state)), [], 0
    for tokens in chunks:
        part, state = step(X[:, start : start + tokens], _place(segments[:, start : start + tokens]), state)
        parts.append(part)
        start += tokens
    real = segments != 0
    expected = _reference(config, params, X, segments)
    np.testing.assert_allclose(np.concatenate(parts, axis=1)[real], expected[real], rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_sum_written_out(config):
    params, weight = _weights(config), GENERATOR.normal(size=X.shape)
    real = SEGMENTS != 0

    def loss(x, params):
        return jnp.sum(_run(config, params, x, _place(SEGMENTS))[0] * (weight * real[:, :, None]))

    # The loss is linear in x and in the parameters, so a difference is exact.
    dx, dparams = jax.jit(jax.grad(loss, (0, 1)))(jnp.asarray(X), params)
    moved = GENERATOR.normal(size=X.shape)
    change = _reference(config, params, X + moved, SEGMENTS) - _reference(config, params, X, SEGMENTS)
    np.testing.assert_allclose(np.sum(dx * moved), np.sum(change * weight), rtol=1e-4, atol=1e-4)
    other = jax.tree.map(lambda leaf: GENERATOR.normal(size=leaf.shape), params)
    change = np.sum(_reference(config, other, X, SEGMENTS) * weight)
    moved = sum(np.sum(a * b) for a, b in zip(jax.tree.leaves(dparams), jax.tree.leaves(other), strict=True))
    np.testing.assert_allclose(moved, change, rtol=1e-4, atol=1e-4)


def test_the_backward_pass_keeps_one_copy_of_the_input():
    config = ConvolutionConfig(8)
    module, params = config.build(C, Precision(), None), _weights(config)
    _, pull = jax.vjp(lambda x: module.apply({"params": params}, x, _place(SEGMENTS))[0], jnp.asarray(X, jnp.float32))
    kept = [leaf for leaf in jax.tree.leaves(pull) if leaf.size >= X.size]
    assert len(kept) <= 1


def test_mixed_precision_rounds_once(config):
    params = _weights(config)
    y, _ = _run(config, params, X, _place(SEGMENTS), precision=MIXED)
    real = SEGMENTS != 0
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(y, np.float32)[real], _reference(config, params, X, SEGMENTS)[real], rtol=0.02, atol=0.08
    )


def test_parameters_are_counted_and_start_at_the_scale_asked_for(config):
    assert config.parameters(C) == trees.count(_weights(config))
    wide = ConvolutionConfig(init=FanIn(0.5)).build(2000, Precision(), None)
    make = jax.jit(lambda: wide.init(jax.random.key(0), jnp.zeros((1, 1, 2000)), _place(np.ones((1, 1))))["params"])
    params = nn.unbox(make())
    np.testing.assert_allclose(params["kernel"].std(), 0.25, rtol=0.05)
    assert (params["bias"] == 0).all()


def test_a_convolution_without_taps_is_refused():
    with pytest.raises(ValueError, match="taps is 0: it must be greater than 0"):
        ConvolutionConfig(0)

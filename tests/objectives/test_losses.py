"""Chunked cross-entropy against the plain form and jax's own derivatives of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.metrics import means
from llm_jax.objectives.losses import cross_entropy

B, T, D, V = 2, 8, 4, 11
GENERATOR = np.random.default_rng(0)
HEAD = jnp.asarray(GENERATOR.normal(size=(D, V)), jnp.float32)
HIDDEN = jnp.asarray(GENERATOR.normal(size=(B, T, D)), jnp.float32)
# The best token in the first row, any in the second.
TARGETS = jnp.asarray([np.argmax(HIDDEN[0] @ HEAD, axis=-1), GENERATOR.integers(0, V, T)], jnp.int32)
WEIGHTS = jnp.asarray(GENERATOR.integers(0, 3, (B, T)) / 2, jnp.float32)


def unembed(head, hidden_BCD):
    return (hidden_BCD @ head["w"]).astype(jnp.float32)


def plain(head, hidden, z_loss, targets=TARGETS, weights=WEIGHTS):
    logits = unembed(head, hidden)
    log_z = jnp.log(jnp.sum(jnp.exp(logits), axis=-1))
    nll = log_z - jnp.sum(logits * jax.nn.one_hot(targets, logits.shape[-1]), axis=-1)
    return jnp.sum(weights * (nll + z_loss * log_z**2))


@functools.cache
def chunked(chunks, z_loss):
    """(head, hidden, scale) -> scale * loss, its metrics and the gradients, compiled."""

    def loss(head, hidden, scale):
        total, metrics = cross_entropy(unembed, head, hidden, TARGETS, WEIGHTS, chunks, z_loss)
        return total * scale, metrics

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


@pytest.mark.parametrize("z_loss", [0.0, 0.3])
@pytest.mark.parametrize("chunks", [1, 4, 8])
def test_loss_and_gradients_are_those_of_the_plain_form(chunks, z_loss):
    assert set(np.asarray(WEIGHTS).ravel()) == {0.0, 0.5, 1.0}
    (loss, metrics), gradients = chunked(chunks, z_loss)({"w": HEAD}, HIDDEN, 1.0)
    expected, expected_gradients = jax.value_and_grad(plain, (0, 1))({"w": HEAD}, HIDDEN, z_loss)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradients[0]["w"], expected_gradients[0]["w"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradients[1], expected_gradients[1], rtol=1e-4, atol=1e-5)


def test_gradients_scale_with_what_comes_after_the_loss():
    _, gradients = chunked(4, 0.3)({"w": HEAD}, HIDDEN, -2.5)
    _, unscaled = chunked(4, 0.3)({"w": HEAD}, HIDDEN, 1.0)
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(unscaled), strict=True):
        np.testing.assert_allclose(one, -2.5 * other, rtol=1e-5)


def test_without_derivatives_the_loss_is_the_same():
    loss, metrics = cross_entropy(unembed, {"w": HEAD}, HIDDEN, TARGETS, WEIGHTS, 4, 0.3)
    (expected, expected_metrics), _ = chunked(4, 0.3)({"w": HEAD}, HIDDEN, 1.0)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert means(metrics) == pytest.approx(means(expected_metrics))


@pytest.mark.parametrize("chunks", [1, 4])
def test_metrics_are_weighted_means(chunks):
    (_, metrics), _ = chunked(chunks, 0.3)({"w": HEAD}, HIDDEN, 1.0)
    values = means(metrics)
    logits = np.asarray(HIDDEN @ HEAD, np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    nll = log_z - np.take_along_axis(logits, np.asarray(TARGETS)[..., None], -1)[..., 0]
    weights = np.asarray(WEIGHTS)
    expected = {"loss": nll, "accuracy": logits.argmax(-1) == TARGETS, "z_loss": log_z**2}
    assert set(values) == set(expected)
    for name, array in expected.items():
        assert values[name] == pytest.approx(np.average(array, weights=weights), rel=1e-5), name
    assert float(metrics["loss"].count) == weights.sum()
    assert 0 < values["accuracy"] < 1


def test_without_z_loss_there_is_no_such_metric():
    (_, metrics), _ = chunked(1, 0.0)({"w": HEAD}, HIDDEN, 1.0)
    assert set(metrics) == {"loss", "accuracy"}


def test_large_scores_do_not_overflow():
    loss, _ = cross_entropy(unembed, {"w": 1e4 * HEAD}, HIDDEN, TARGETS, WEIGHTS, 2)
    assert np.isfinite(loss)


def test_chunks_must_divide_the_row():
    with pytest.raises(ValueError, match="3 chunks and sequences have 8 tokens: the number of chunks must divide"):
        cross_entropy(unembed, {"w": HEAD}, HIDDEN, TARGETS, WEIGHTS, 3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_of_chunks_are_added_in_float32(dtype):
    # Each of 512 chunks adds 1 to the gradient of the wrong token; bfloat16 cannot count past 256.
    length = 512
    hidden, targets = jnp.ones((1, length, 1), dtype), jnp.zeros((1, length), jnp.int32)

    def loss(head):
        return cross_entropy(unembed, head, hidden, targets, jnp.ones((1, length)), chunks=length)[0]

    gradient = jax.grad(loss)({"w": jnp.asarray([[0.0, 300.0]], dtype)})["w"]
    assert gradient.dtype == dtype
    np.testing.assert_allclose(np.asarray(gradient, np.float32), [[-length, length]])


VOCAB, LENGTH, WIDTH = 32_768, 1024, 64


def _temporary_bytes(loss):
    shapes = [((WIDTH, VOCAB), jnp.float32), ((2, LENGTH, WIDTH), jnp.float32), ((2, LENGTH), jnp.int32)]
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_is_that_of_a_chunk():
    weights = jnp.ones((2, LENGTH))

    def in_chunks(head, hidden, targets):
        return cross_entropy(unembed, {"w": head}, hidden, targets, weights, chunks=8)[0]

    def at_once(head, hidden, targets):
        return plain({"w": head}, hidden, 0.0, targets, weights)

    logits = 4 * 2 * LENGTH * VOCAB
    plain_bytes, chunked_bytes = _temporary_bytes(at_once), _temporary_bytes(in_chunks)
    assert plain_bytes >= logits
    assert chunked_bytes <= plain_bytes / 3
    assert chunked_bytes < logits / 2


def test_of_equal_scores_the_first_is_the_prediction():
    logits = jnp.array([[[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [2.0, 2.0, 2.0]]])
    for targets in ([0, 1, 0], [1, 2, 2], [2, 0, 1]):
        targets_BT = jnp.array([targets])
        weights_BT = jnp.ones_like(targets_BT)
        _, metrics = cross_entropy(lambda _, hidden: hidden, {}, logits, targets_BT, weights_BT)
        assert means(metrics)["accuracy"] == pytest.approx(np.mean(np.argmax(logits, -1) == targets_BT))

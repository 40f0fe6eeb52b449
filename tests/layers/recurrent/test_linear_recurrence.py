"""The linear recurrence against a walk along the row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layers.recurrent.linear_recurrence import linear_recurrence

B, R = 2, 3


def _inputs(length):
    generator = np.random.default_rng(length)
    decay = generator.uniform(0, 1, (B, length, R))
    decay[0, length // 2] = 0  # a document begins
    return decay, generator.normal(size=(B, length, R)), generator.normal(size=(B, R))


def _walk(decay, values, before):
    h = []
    for step in range(decay.shape[1]):
        before = decay[:, step] * before + values[:, step]
        h.append(before)
    return jnp.stack(h, axis=1) if isinstance(before, jax.Array) else np.stack(h, axis=1)


@pytest.mark.parametrize("length", [1, 2, 7, 33])
def test_every_step_follows_from_the_one_before(length):
    inputs = _inputs(length)
    h = jax.jit(linear_recurrence)(*(jnp.asarray(array, jnp.float32) for array in inputs))
    np.testing.assert_allclose(h, _walk(*inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [1, 7])
def test_gradients_are_those_of_the_walk(length):
    inputs = [jnp.asarray(array, jnp.float32) for array in _inputs(length)]
    weight = jnp.asarray(np.random.default_rng(9).normal(size=(B, length, R)), jnp.float32)
    loss = lambda run: lambda *inputs: jnp.sum(jnp.sin(run(*inputs)) * weight)  # noqa: E731
    actual = jax.jit(jax.grad(loss(linear_recurrence), (0, 1, 2)))(*inputs)
    expected = jax.jit(jax.grad(loss(_walk), (0, 1, 2)))(*inputs)
    for found, wanted in zip(actual, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_backward_pass_keeps_two_arrays_of_the_row():
    inputs = [jnp.asarray(array, jnp.float32) for array in _inputs(64)]
    _, pull = jax.vjp(linear_recurrence, *inputs)
    kept = [leaf for leaf in jax.tree.leaves(pull) if leaf.size > B * R]
    assert sum(leaf.size for leaf in kept) <= 2 * B * 64 * R


def test_a_policy_that_keeps_the_context_does_not_run_along_the_row_again():
    inputs = [jnp.asarray(array, jnp.float32) for array in _inputs(64)]
    policy = jax.checkpoint_policies.save_only_these_names("context")

    def steps(run):
        program = jax.make_jaxpr(jax.grad(lambda *inputs: jnp.sum(jnp.sin(run(*inputs)))))(*inputs)
        return str(program).count(" slice[")

    assert 0 < steps(jax.checkpoint(linear_recurrence, policy=policy)) <= steps(linear_recurrence)


def test_long_rows_that_hardly_decay_stay_exact():
    decay, values = np.full((1, 4096, 1), 0.9999), np.random.default_rng(0).normal(size=(1, 4096, 1))
    h = jax.jit(linear_recurrence)(
        jnp.asarray(decay, jnp.float32), jnp.asarray(values, jnp.float32), jnp.zeros((1, 1), jnp.float32)
    )
    expected = _walk(decay.astype(np.float32).astype(float), values, np.zeros((1, 1)))
    np.testing.assert_allclose(h, expected, atol=1e-4 * np.abs(expected).max())

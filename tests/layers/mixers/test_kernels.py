"""The attention seam: every kernel gives what softmax(q k^T) v gives, and so do its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layers.mixers.kernels import BlockedKernel, PlainKernel, attend
from llm_jax.layers.mixers.masks import Bidirectional, Causal, Placement
from llm_jax.layers.mixers.scores import ScoresConfig
from llm_jax.layers.positions.alibi import ALiBiConfig

B, N, K, T, H = 2, 4, 2, 7, 4
GENERATOR = np.random.default_rng(0)
Q, KEYS, VALUES = (jnp.asarray(GENERATOR.normal(size=(B, heads, T, H)), jnp.float32) for heads in (N, K, K))
SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 2, 2]])
POSITIONS = jnp.array([[0, 1, 2, 0, 1, 2, 0], [0, 1, 2, 3, 4, 0, 1]])
REAL = np.asarray(SEGMENTS != 0)[:, None, :, None]


def _reference(q, k, v, allowed):
    """Vaswani et al. 2017, eq. 1, written with jax.nn.softmax and differentiated by jax."""
    k, v = (jnp.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = jnp.einsum("BNTH,BNSH->BNTS", q, k) / np.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(allowed[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("BNTS,BNSH->BNTH", weights, v)


def _value_and_gradients(function, cotangent):
    """y and its pull-back of `cotangent`."""
    y, pull = jax.vjp(function, Q, KEYS, VALUES)
    return y, pull(cotangent)


KERNELS = {
    "plain": PlainKernel(),
    "blocks of 3": BlockedKernel(3),
    "one block": BlockedKernel(),
}


@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one document", "packed"])
@pytest.mark.parametrize("mask", [Causal(), Bidirectional()], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_kernel_and_its_gradients_are_those_of_softmax(kernel, mask, segments):
    place = Placement(POSITIONS, segments)
    allowed = np.broadcast_to(mask.within(place, slice(0, T), slice(0, T)), (B, T, T))
    real = REAL if segments is not None else np.ones_like(REAL)
    # A query of padding sees nothing; what it gives is counted nowhere, so nothing comes back to it either.
    seen = jnp.asarray(allowed | ~allowed.any(axis=-1, keepdims=True))
    cotangent = jnp.asarray(GENERATOR.normal(size=Q.shape) * real, jnp.float32)

    @jax.jit
    def both(cotangent):
        run = lambda q, k, v: kernel.attend(q, k, v, mask, place, None, ScoresConfig())  # noqa: E731
        return _value_and_gradients(run, cotangent), _value_and_gradients(lambda *x: _reference(*x, seen), cotangent)

    (y, gradients), (expected, expected_gradients) = both(cotangent)
    np.testing.assert_allclose(y * real, expected * real, rtol=1e-4, atol=1e-5)
    assert np.isfinite(y).all()
    for name, gradient, wanted in zip("qkv", gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-5, err_msg=name)
        assert np.abs(wanted).max() > 0.1


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_with_a_cache_the_keys_are_its_slots(kernel):
    slots = Placement(POSITIONS, SEGMENTS)
    queries = Placement(POSITIONS[:, 4:6], SEGMENTS[:, 4:6])
    y = kernel.attend(Q[:, :, 4:6], KEYS, VALUES, Causal(), queries, slots, ScoresConfig())
    whole = _reference(Q, KEYS, VALUES, Causal().across(slots, slots).at[0, 6].set(True))
    np.testing.assert_allclose(y, whole[:, :, 4:6], rtol=1e-4, atol=1e-5)


def test_blocks_skip_what_no_query_of_theirs_can_see():
    place = Placement(jnp.arange(64)[None])

    def flops(kernel):
        shapes = [jax.ShapeDtypeStruct((1, heads, 64, 8), jnp.float32) for heads in (2, 1, 1)]
        attended = jax.jit(lambda q, k, v: kernel.attend(q, k, v, Causal(), place, None, ScoresConfig()))
        return attended.lower(*shapes).cost_analysis()["flops"]

    # Eight blocks of eight: block i sees 8 (i + 1) keys, in all (64 + 8) / 2 a query.
    np.testing.assert_allclose(flops(BlockedKernel(8)) / flops(PlainKernel()), 36 / 64, rtol=0.05)


def test_a_window_costs_its_width_and_not_the_length():
    def flops(length):
        shapes = [jax.ShapeDtypeStruct((1, heads, length, 8), jnp.float32) for heads in (2, 1, 1)]
        place = Placement(jnp.arange(length)[None])
        run = lambda q, k, v: BlockedKernel(8).attend(q, k, v, Causal(8), place, None, ScoresConfig())  # noqa: E731
        return jax.jit(run).lower(*shapes).cost_analysis()["flops"]

    # Blocks of eight see at most 15 keys, the first one 8.
    np.testing.assert_allclose(flops(256) / flops(64), (31 * 15 + 8) / (7 * 15 + 8), rtol=0.02)


SCORES = {
    "scale": ScoresConfig(scale=0.1),
    "softcap": ScoresConfig(softcap=0.7),
    "linear bias": ScoresConfig(bias=ALiBiConfig()),
    "all": ScoresConfig(scale=0.9, softcap=1.5, bias=ALiBiConfig(factor=0.3)),
}


@pytest.mark.parametrize("mask", [Causal(), Causal(3)], ids=["causal", "window"])
@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_scores_are_scaled_capped_and_biased_and_so_are_their_gradients(kernel, scores, mask):
    distance = np.arange(T)[:, None] - np.arange(T)
    bias = -np.abs(distance) * 2.0 ** (-8 / N * np.arange(1, N + 1))[:, None, None] if scores.bias else 0
    factor = scores.bias.factor if scores.bias else 1

    def reference(q, k, v):
        k, v = (jnp.repeat(x, N // K, axis=1) for x in (k, v))
        raw = jnp.einsum("BNTH,BNSH->BNTS", q, k) * (scores.scale or H**-0.5)
        raw = raw if scores.softcap is None else scores.softcap * jnp.tanh(raw / scores.softcap)
        allowed = (distance >= 0) & (distance < (mask.window or T))
        weights = jax.nn.softmax(jnp.where(allowed, raw + factor * bias, -jnp.inf), axis=-1)
        return jnp.einsum("BNTS,BNSH->BNTH", weights, v)

    place = Placement(jnp.broadcast_to(jnp.arange(T), (B, T)))
    cotangent = jnp.asarray(GENERATOR.normal(size=Q.shape), jnp.float32)
    run = lambda q, k, v: kernel.attend(q, k, v, mask, place, None, scores)  # noqa: E731
    actual, expected = (jax.jit(lambda c, f=f: _value_and_gradients(f, c))(cotangent) for f in (run, reference))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected)
    plain = PlainKernel().attend(Q, KEYS, VALUES, mask, place, None, ScoresConfig())
    assert np.abs(plain - actual[0]).max() > 1e-2


def test_a_cache_has_the_biases_of_its_positions():
    scores = ScoresConfig(bias=ALiBiConfig())
    slots = Placement(POSITIONS, SEGMENTS)
    whole = PlainKernel().attend(Q, KEYS, VALUES, Causal(), slots, None, scores)
    queries = Placement(POSITIONS[:, 4:6], SEGMENTS[:, 4:6])
    y = PlainKernel().attend(Q[:, :, 4:6], KEYS, VALUES, Causal(), queries, slots, scores)
    np.testing.assert_allclose(y, whole[:, :, 4:6], rtol=1e-4, atol=1e-5)


def test_a_bias_learns():
    bias = jnp.asarray(GENERATOR.normal(size=(1, N, T, T)), jnp.float32)
    allowed = jnp.asarray(np.tril(np.ones((1, T, T), bool)))

    def reference(bias):
        k, v = (jnp.repeat(x, N // K, axis=1) for x in (KEYS, VALUES))
        raw = jnp.einsum("BNTH,BNSH->BNTS", Q, k) / np.sqrt(H) + bias
        weights = jax.nn.softmax(jnp.where(allowed[:, None], raw, -jnp.inf), axis=-1)
        return jnp.sum(jnp.sin(jnp.einsum("BNTS,BNSH->BNTH", weights, v)))

    actual = jax.grad(lambda bias: jnp.sum(jnp.sin(attend(Q, KEYS, VALUES, allowed, bias))))(bias)
    np.testing.assert_allclose(actual, jax.grad(reference)(bias), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_values_may_have_another_size_than_keys(kernel):
    place = Placement(jnp.broadcast_to(jnp.arange(T), (B, T)))
    allowed = np.broadcast_to(np.tril(np.ones((T, T), bool)), (B, T, T))
    run = lambda q, k, v: kernel.attend(q, k, v[..., :3], Causal(), place, None, ScoresConfig())  # noqa: E731
    reference = lambda q, k, v: _reference(q, k, v[..., :3], allowed)  # noqa: E731
    cotangent = jnp.asarray(GENERATOR.normal(size=(B, N, T, 3)), jnp.float32)
    actual, expected = (jax.jit(lambda c, f=f: _value_and_gradients(f, c))(cotangent) for f in (run, reference))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected)


def test_query_heads_share_keys_in_consecutive_groups():
    allowed = jnp.ones((1, 1, 1), bool)
    grouped = attend(Q, KEYS, VALUES, allowed)
    other = attend(Q, *(jnp.tile(x, (1, N // K, 1, 1)) for x in (KEYS, VALUES)), allowed)
    np.testing.assert_allclose(grouped[:, :2], attend(Q[:, :2], KEYS[:, :1], VALUES[:, :1], allowed), rtol=1e-5)
    assert not np.allclose(grouped, other, atol=1e-2)


def test_keys_that_are_not_allowed_have_no_influence_at_all():
    allowed = jnp.asarray([[[True, True, False, True, False, True, True]]])
    hidden = ~allowed[0, 0][None, None, :, None]
    y = attend(Q, KEYS, VALUES, allowed)
    changed = attend(Q, jnp.where(hidden, 1e4, KEYS), jnp.where(hidden, -1e4, VALUES), allowed)
    np.testing.assert_array_equal(y, changed)


def test_a_query_that_sees_nothing_averages_and_has_finite_gradients():
    nothing = jnp.zeros((1, 1, 1), bool)
    y, gradients = _value_and_gradients(lambda *x: attend(*x, nothing), jnp.ones_like(Q))
    np.testing.assert_allclose(y[0, 0], jnp.broadcast_to(VALUES[0, 0].mean(axis=0), (T, H)), rtol=1e-4, atol=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_large_scores_do_not_overflow():
    y, gradients = _value_and_gradients(
        lambda q, k, v: attend(1e4 * q, k, v, jnp.ones((1, 1, 1), bool)), jnp.ones_like(Q)
    )
    assert all(np.isfinite(array).all() for array in (y, *gradients))


def test_bfloat16_stays_bfloat16_and_near_float32():
    low = [x.astype(jnp.bfloat16) for x in (Q, KEYS, VALUES)]
    allowed = jnp.ones((1, 1, 1), bool)
    y, pull = jax.vjp(lambda *x: attend(*x, allowed), *low)
    exact, exact_pull = jax.vjp(lambda *x: attend(*x, allowed), *(x.astype(jnp.float32) for x in low))
    cotangent = jnp.ones_like(y)
    pairs = zip((y, *pull(cotangent)), (exact, *exact_pull(cotangent.astype(jnp.float32))), strict=True)
    for actual, expected in pairs:
        assert actual.dtype == jnp.bfloat16
        error = np.abs(np.asarray(actual, np.float32) - expected).max()
        assert error < 0.02 * np.abs(expected).max()


def test_a_block_holds_at_least_one_query():
    with pytest.raises(ValueError, match="block is 0"):
        BlockedKernel(0)

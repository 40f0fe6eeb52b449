"""Attention block by block: what it visits, what it keeps, what it needs of memory. That it is attention is asked in
test_kernels.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layers.attention import chunked
from llm_jax.layers.attention.kernels import ChunkedKernel, Kernel, PlainKernel
from llm_jax.layers.attention.masks import Bidirectional, Causal, Mask
from llm_jax.layers.attention.pairs import Pairs
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.positions.relative_bias import RelativeBiasConfig
from llm_jax.layers.sequence import SequenceInfo

N, K, H = 2, 1, 4


def _pairs(mask: Mask, length: int) -> Pairs:
    return Pairs(mask, SequenceInfo(jnp.arange(length)[None]), None, ScoresConfig())


def _drawn(length: int):
    generator = np.random.default_rng(0)
    return [np.float32(generator.normal(size=(1, heads, length, H))) for heads in (N, K, K)]


@pytest.mark.parametrize(
    ("mask", "first", "last"),
    [
        (Causal(), [0, 0, 0, 0], [1, 2, 3, 4]),
        (Causal(3), [0, 0, 1, 2], [1, 2, 3, 4]),
        (Causal(1), [0, 1, 2, 3], [1, 2, 3, 4]),
        (Bidirectional(), [0, 0, 0, 0], [4, 4, 4, 4]),
    ],
)
def test_blocks_that_the_mask_cannot_reach_are_not_visited(mask, first, last):
    # Four blocks of three for eleven tokens: the last has two.
    np.testing.assert_array_equal(chunked.visits(_pairs(mask, 11), 3), (first, last))


def test_a_cache_is_visited_whole():
    queries, slots = (SequenceInfo(jnp.zeros((1, number), jnp.int32)) for number in (2, 10))
    pairs = Pairs(Causal(), queries, slots, ScoresConfig())
    np.testing.assert_array_equal(chunked.visits(pairs, 4), ([0], [3]))


@pytest.mark.parametrize("kernel", [ChunkedKernel(3), PlainKernel()])
def test_what_is_not_visited_is_not_computed(kernel):
    # Not-a-number times nothing is not a number: whoever computes with it shows it.
    q, k, v = _drawn(12)
    at = np.arange(12)[:, None]
    far, future = at < 3, at >= 9
    middle = slice(6, 9)  # the block of queries whose window of three reaches neither
    pairs = _pairs(Causal(3), 12)

    @jax.jit
    def run(k, v):
        attend = lambda q: kernel.attend(q, k, v, pairs)  # noqa: E731
        y, pull = jax.vjp(attend, q)
        return y, pull(jnp.ones_like(y))[0]

    results = map(np.asarray, run(*(np.where(far | future, np.float32(np.nan), x) for x in (k, v))))
    for result in results:
        assert np.isfinite(result[:, :, middle]).all() == (type(kernel) is ChunkedKernel)
        assert np.isnan(result[:, :, :3]).any()


def test_a_query_that_sees_nothing_gives_nothing_and_gets_nothing():
    segments = jnp.array([[1, 1, 0, 0, 0, 0, 2]])
    pairs = Pairs(Causal(), SequenceInfo(jnp.arange(7)[None], segments), None, ScoresConfig())

    @jax.jit
    def both(*arrays):
        y, pull = jax.vjp(lambda *arrays: ChunkedKernel(2).attend(*arrays, pairs), *arrays)
        return y, *pull(jnp.ones_like(y))

    y, *gradients = map(np.asarray, both(*_drawn(7)))
    padding = np.asarray(segments == 0)[0]
    assert (y[:, :, padding] == 0).all() and (y[:, :, ~padding] != 0).all()
    for gradient in gradients:
        assert np.isfinite(gradient).all() and (gradient[:, :, padding] == 0).all()


def test_large_scores_do_not_overflow():
    q, k, v = _drawn(7)

    @jax.jit
    def both(q):
        run = lambda kernel: jax.vjp(lambda q: kernel.attend(q, k, v, _pairs(Causal(), 7)), 1e4 * q)  # noqa: E731
        (y, pull), (expected, expected_pull) = run(ChunkedKernel(2)), run(PlainKernel())
        return (y, pull(y)[0]), (expected, expected_pull(y)[0])

    (y, gradient), (expected, expected_gradient) = both(q)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


def test_values_may_be_of_another_size_than_keys():
    q, k, v = _drawn(7)
    wide, kernels = np.concatenate([v, 2 * v, 3 * v], axis=-1), (ChunkedKernel(3), PlainKernel())
    y, expected = jax.jit(lambda: [kernel.attend(q, k, wide, _pairs(Causal(), 7)) for kernel in kernels])()
    assert y.shape == (1, N, 7, 3 * H)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_a_policy_that_keeps_the_context_spares_the_loop():
    def products(names):
        policy = jax.checkpoint_policies.save_only_these_names(*names)
        attend = lambda *arrays: jnp.sin(ChunkedKernel(2).attend(*arrays, _pairs(Causal(), 8)))  # noqa: E731
        gradient = jax.grad(lambda *arrays: jax.checkpoint(attend, policy=policy)(*arrays).sum(), argnums=(0, 1, 2))
        return str(jax.jit(gradient).trace(*_drawn(8)).jaxpr).count("dot_general[")

    # Scores and context forward; backward scores again, and the gradients of weights, queries, keys and values.
    assert products(("context",)) == 2 + 5
    assert products(("other",)) == 2 + 2 + 5


@functools.cache
def _peak_bytes(kernel: Kernel, length: int) -> int:
    """Temporary memory of forward and backward pass of packed attention with learned biases, as compiled."""
    scores = ScoresConfig(bias=RelativeBiasConfig())

    def loss(arrays, table, sequence):
        return jnp.sum(kernel.attend(*arrays, Pairs(Causal(), sequence, None, scores, table)))

    arrays = [jax.ShapeDtypeStruct((1, heads, length, 32), jnp.float32) for heads in (2, 1, 1)]
    sequence = SequenceInfo(*2 * [jax.ShapeDtypeStruct((1, length), jnp.int32)])
    lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(
        arrays, jax.ShapeDtypeStruct((32, 2), jnp.float32), sequence
    )
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_memory_is_less_than_a_quarter_of_the_plain_kernels():
    assert _peak_bytes(ChunkedKernel(128), 1024) <= _peak_bytes(PlainKernel(), 1024) / 4


def test_memory_grows_with_the_length_and_not_with_its_square():
    assert _peak_bytes(ChunkedKernel(128), 2048) <= 2.2 * _peak_bytes(ChunkedKernel(128), 1024)
    assert _peak_bytes(PlainKernel(), 1024) >= 3.5 * _peak_bytes(PlainKernel(), 512)

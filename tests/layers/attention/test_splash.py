"""Splash attention, interpreted on the CPU, gives what softmax(q k^T) v gives, and so do its gradients."""

import functools
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

from llm_jax.layers.attention.kernels import BlockedKernel, PlainKernel, SplashKernel
from llm_jax.layers.attention.masks import Bidirectional, BidirectionalWindow, Causal, Permuted
from llm_jax.layers.attention.pairs import Pairs
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.positions.alibi import ALiBiConfig
from llm_jax.layers.sequence import SequenceInfo

B, N, K, T, H = 2, 4, 2, 256, 32
GENERATOR = np.random.default_rng(0)
Q, KEYS, VALUES, COTANGENT = (
    jnp.asarray(GENERATOR.normal(size=(B, heads, T, H)), jnp.float32) for heads in (N, K, K, N)
)
POSITIONS = jnp.broadcast_to(jnp.arange(T), (B, T))
SEGMENTS = jnp.asarray(np.sort(GENERATOR.integers(1, 4, (B, T)))).at[:, 240:].set(0)


@pytest.fixture
def interpreted():
    make = functools.partial(splash_attention_kernel.make_splash_mha, interpret=True)
    with mock.patch.object(splash_attention_kernel, "make_splash_mha", make):
        yield


def _value_and_gradients(kernel, pairs):
    """Output and gradients, without those of padding."""
    segments = pairs.queries.segment_ids_BT
    real = 1.0 if segments is None else (segments != 0)[:, None, :, None].astype(jnp.float32)

    @jax.jit
    def both(cotangent):
        y, pull = jax.vjp(lambda *arrays: kernel.attend(*arrays, pairs), Q, KEYS, VALUES)
        return y * real, *pull(cotangent * real)

    return both(COTANGENT)


@pytest.mark.parametrize(
    ("mask", "segments", "scores"),
    [
        (Causal(), SEGMENTS, ScoresConfig()),
        (Causal(100), None, ScoresConfig(softcap=2.0, scale=0.3)),
        (Bidirectional(), SEGMENTS, ScoresConfig(scale=0.1)),
        (BidirectionalWindow(60), SEGMENTS, ScoresConfig()),
    ],
    ids=["causal and packed", "window", "bidirectional and packed", "bidirectional window and packed"],
)
def test_it_is_softmax_attention_forward_and_backward(interpreted, mask, segments, scores):
    pairs = Pairs(mask, SequenceInfo(POSITIONS, segments), None, scores)
    found, expected = (_value_and_gradients(kernel, pairs) for kernel in (SplashKernel(128), PlainKernel()))
    for name, one, other in zip(("y", "q", "k", "v"), found, expected, strict=True):
        assert np.abs(other).max() > 0.1
        np.testing.assert_allclose(one, other, atol=3e-6 * np.abs(other).max(), err_msg=name)


def test_what_its_backward_pass_needs_can_be_kept():
    pairs = Pairs(Causal(), SequenceInfo(POSITIONS), None, ScoresConfig())
    kept = jax.checkpoint_policies.save_only_these_names("context")

    def forward_passes(policy):
        attend = jax.checkpoint(lambda q: SplashKernel().attend(q, KEYS, VALUES, pairs), policy=policy)
        traced = jax.jit(jax.grad(lambda q: jnp.sum(jnp.sin(attend(q))))).trace(Q)
        return len(re.findall(r"kernel_name = \S*fwd", traced.lower(lowering_platforms=("tpu",)).as_text()))

    assert (forward_passes(kept), forward_passes(None)) == (1, 2)


def test_short_rows_and_caches_take_the_blocked_kernel():
    sequence = SequenceInfo(POSITIONS[:, :7])
    q, k, v = (x[:, :, :7] for x in (Q, KEYS, VALUES))
    for slots in (None, sequence):
        pairs = Pairs(Causal(), sequence, slots, ScoresConfig())
        expected = BlockedKernel().attend(q, k, v, pairs)
        np.testing.assert_array_equal(SplashKernel().attend(q, k, v, pairs), expected)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: SplashKernel(100), "block is 100"),
        (lambda: SplashKernel().check(ScoresConfig(bias=ALiBiConfig())), "scores.bias is ALiBiConfig"),
        (
            lambda: SplashKernel().attend(
                Q, KEYS, VALUES, Pairs(Permuted(), SequenceInfo(POSITIONS), None, ScoresConfig())
            ),
            "mask is Permuted",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use()

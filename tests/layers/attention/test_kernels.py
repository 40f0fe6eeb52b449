"""The attention seam: every kernel gives what softmax(q k^T) v gives, and so do its gradients."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layers.attention import fused
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.attention.kernels import (
    BlockedKernel,
    ChunkedKernel,
    DotProductKernel,
    PlainKernel,
    SplashKernel,
    TokamaxKernel,
    weights,
)
from llm_jax.layers.attention.masks import Bidirectional, BidirectionalWindow, Causal, Mask, PrefixCausal
from llm_jax.layers.attention.pairs import Pairs
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.positions.alibi import ALiBiConfig
from llm_jax.layers.positions.relative_bias import RelativeBiasConfig
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.transformer import Transformer
from tests.helpers import tiny

B, N, K, T, H = 2, 4, 2, 7, 4
GENERATOR = np.random.default_rng(0)
Q, KEYS, VALUES = (GENERATOR.normal(size=(B, heads, T, H)).astype(np.float32) for heads in (N, K, K))
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 2, 2]])
POSITIONS = np.array([[0, 1, 2, 0, 1, 2, 0], [0, 1, 2, 3, 4, 0, 1]])
REAL = (SEGMENTS != 0)[:, None, :, None]


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
    "chunks of 3": ChunkedKernel(3),
    "one chunk": ChunkedKernel(),
    "jax": DotProductKernel("xla"),
}


def _gives(kernel, scores):
    """Whether a kernel takes these scores."""
    try:
        kernel.check(scores)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one document", "packed"])
@pytest.mark.parametrize("mask", [Causal(), Bidirectional(), PrefixCausal()], ids=["causal", "bidirectional", "prefix"])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_kernel_and_its_gradients_are_those_of_softmax(kernel, mask, segments):
    sequence = SequenceInfo(POSITIONS, segments, prefix_BT=POSITIONS < 2)
    allowed = np.broadcast_to(Pairs(mask, sequence, None, ScoresConfig()).allowed(), (B, T, T))
    real = REAL if segments is not None else np.ones_like(REAL)
    # A query of padding sees nothing; what it gives is counted nowhere, so nothing comes back to it either.
    seen = jnp.asarray(allowed | ~allowed.any(axis=-1, keepdims=True))
    cotangent = np.float32(GENERATOR.normal(size=Q.shape) * real)

    @jax.jit
    def both(cotangent):
        run = lambda q, k, v: kernel.attend(q, k, v, Pairs(mask, sequence, None, ScoresConfig()))  # noqa: E731
        return _value_and_gradients(run, cotangent), _value_and_gradients(lambda *x: _reference(*x, seen), cotangent)

    (y, gradients), (expected, expected_gradients) = both(cotangent)
    np.testing.assert_allclose(y * real, expected * real, rtol=1e-4, atol=1e-5)
    assert np.isfinite(y).all()
    for name, gradient, wanted in zip("qkv", gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-5, err_msg=name)
        assert np.abs(wanted).max() > 0.1


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_with_a_cache_the_keys_are_its_slots(kernel):
    slots = SequenceInfo(POSITIONS, SEGMENTS)
    queries = SequenceInfo(POSITIONS[:, 4:6], SEGMENTS[:, 4:6])
    pairs = Pairs(Causal(), queries, slots, ScoresConfig())
    seen = np.array(Causal().across(slots, slots))
    seen[0, 6] = True

    @jax.jit
    def both(q, k, v):
        whole = _reference(q, k, v, seen)
        return kernel.attend(q[:, :, 4:6], k, v, pairs), whole

    y, whole = both(Q, KEYS, VALUES)
    np.testing.assert_allclose(y, whole[:, :, 4:6], rtol=1e-4, atol=1e-5)


def test_blocks_skip_what_no_query_of_theirs_can_see():
    sequence = SequenceInfo(jnp.arange(64)[None])

    def flops(kernel):
        shapes = [jax.ShapeDtypeStruct((1, heads, 64, 8), jnp.float32) for heads in (2, 1, 1)]
        attended = jax.jit(lambda q, k, v: kernel.attend(q, k, v, Pairs(Causal(), sequence, None, ScoresConfig())))
        return attended.lower(*shapes).cost_analysis()["flops"]

    # Eight blocks of eight: block i sees 8 (i + 1) keys, in all (64 + 8) / 2 a query.
    np.testing.assert_allclose(flops(BlockedKernel(8)) / flops(PlainKernel()), 36 / 64, rtol=0.05)


def test_a_window_costs_its_width_and_not_the_length():
    def flops(length):
        shapes = [jax.ShapeDtypeStruct((1, heads, length, 8), jnp.float32) for heads in (2, 1, 1)]
        sequence = SequenceInfo(jnp.arange(length)[None])
        pairs = Pairs(Causal(8), sequence, None, ScoresConfig())
        run = lambda q, k, v: BlockedKernel(8).attend(q, k, v, pairs)  # noqa: E731
        return jax.jit(run).lower(*shapes).cost_analysis()["flops"]

    # Blocks of eight see at most 15 keys, the first one 8.
    np.testing.assert_allclose(flops(256) / flops(64), (31 * 15 + 8) / (7 * 15 + 8), rtol=0.02)


SCORES = {
    "scale": ScoresConfig(scale=0.1),
    "softcap": ScoresConfig(softcap=0.7),
    "linear bias": ScoresConfig(bias=ALiBiConfig()),
    "sinks": ScoresConfig(sinks=True),
    "all": ScoresConfig(scale=0.9, softcap=1.5, bias=ALiBiConfig(factor=0.3), sinks=True),
}
SINKS = GENERATOR.normal(size=N).astype(np.float32)
ROW = SequenceInfo(np.broadcast_to(np.arange(T), (B, T)))


@functools.cache
def _written_out(title: str, mask: Mask):
    """Scores as a formula, differentiated by jax: output, gradients and what the plain kernel gives without options."""
    scores = SCORES[title]
    distance = np.arange(T)[:, None] - np.arange(T)
    bias = -np.abs(distance) * 2.0 ** (-8 / N * np.arange(1, N + 1))[:, None, None] if scores.bias else 0
    factor = scores.bias.factor if scores.bias else 1
    sinks = SINKS if scores.sinks else np.full(N, -np.inf, np.float32)

    def reference(q, k, v):
        k, v = (jnp.repeat(x, N // K, axis=1) for x in (k, v))
        raw = jnp.einsum("BNTH,BNSH->BNTS", q, k) * (scores.scale or H**-0.5)
        raw = raw if scores.softcap is None else scores.softcap * jnp.tanh(raw / scores.softcap)
        allowed = (distance >= 0) & (distance < (mask.window or T))
        logits = jnp.where(allowed, raw + factor * bias, -jnp.inf)
        whole = jnp.concatenate([logits, jnp.broadcast_to(sinks[:, None, None], (B, N, T, 1))], axis=-1)
        return jnp.einsum("BNTS,BNSH->BNTH", jax.nn.softmax(whole, axis=-1)[..., :-1], v)

    def both(cotangent):
        plain = PlainKernel().attend(Q, KEYS, VALUES, Pairs(mask, ROW, None, ScoresConfig()))
        return _value_and_gradients(reference, cotangent), plain

    return jax.jit(both)(COTANGENT)


COTANGENT = GENERATOR.normal(size=Q.shape).astype(np.float32)


@pytest.mark.parametrize("mask", [Causal(), Causal(3)], ids=["causal", "window"])
@pytest.mark.parametrize(
    ("kernel", "title"),
    [
        pytest.param(kernel, title, id=f"{name}-{title}")
        for name, kernel in KERNELS.items()
        for title, scores in SCORES.items()
        if _gives(kernel, scores)
    ],
)
def test_scores_are_scaled_capped_and_biased_and_so_are_their_gradients(kernel, title, mask):
    scores, (expected, plain) = SCORES[title], _written_out(title, mask)
    pairs = Pairs(mask, ROW, None, scores, sink_N=jnp.asarray(SINKS) if scores.sinks else None)
    run = lambda q, k, v: kernel.attend(q, k, v, pairs)  # noqa: E731
    actual = jax.jit(lambda cotangent: _value_and_gradients(run, cotangent))(COTANGENT)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected)
    assert np.abs(plain - actual[0]).max() > 1e-2


def test_a_cache_has_the_biases_of_its_positions():
    scores = ScoresConfig(bias=ALiBiConfig())
    slots = SequenceInfo(POSITIONS, SEGMENTS)
    queries = SequenceInfo(POSITIONS[:, 4:6], SEGMENTS[:, 4:6])

    @jax.jit
    def both(q, k, v):
        whole = PlainKernel().attend(q, k, v, Pairs(Causal(), slots, None, scores))
        return PlainKernel().attend(q[:, :, 4:6], k, v, Pairs(Causal(), queries, slots, scores)), whole

    y, whole = both(Q, KEYS, VALUES)
    np.testing.assert_allclose(y, whole[:, :, 4:6], rtol=1e-4, atol=1e-5)


# Every kind of pairs: mask, number of key/value heads, queries, slots, scores.
PACKED = SequenceInfo(POSITIONS, SEGMENTS)
LAST = PACKED.part(slice(4, T))
ALIBI, LEARNED = ScoresConfig(bias=ALiBiConfig()), ScoresConfig(bias=RelativeBiasConfig(8, 6))
BOTH_WAYS = ScoresConfig(bias=RelativeBiasConfig(8, 6, bidirectional=True))
CASES = {
    "causal": (Causal(), K, ROW, None, ScoresConfig()),
    "causal of one key/value head, packed, learned bias": (Causal(), 1, PACKED, None, LEARNED),
    "window, scale, linear bias": (Causal(3), K, ROW, None, ScoresConfig(0.7, bias=ALiBiConfig())),
    "window, packed, cap": (Causal(4), K, PACKED, None, ScoresConfig(0.9, softcap=0.7)),
    "bidirectional, learned bias": (Bidirectional(), N, ROW, None, BOTH_WAYS),
    "bidirectional, packed, cap, linear bias": (Bidirectional(), K, PACKED, None, ScoresConfig(None, 0.7, ALIBI.bias)),
    "bidirectional window": (BidirectionalWindow(2), K, ROW, None, ScoresConfig()),
    "bidirectional window, packed, learned bias": (BidirectionalWindow(1), N, PACKED, None, BOTH_WAYS),
    "cache, linear bias": (Causal(), K, LAST, PACKED, ALIBI),
    "cache, window, cap and learned bias": (Causal(2), K, LAST, PACKED, ScoresConfig(None, 0.7, LEARNED.bias)),
    "memory": (Bidirectional(), N, LAST, PACKED, ScoresConfig()),
    "memory, learned bias": (Bidirectional(), K, LAST, PACKED, BOTH_WAYS),
    "packed, sinks": (Causal(4), K, PACKED, None, ScoresConfig(sinks=True)),
    "cache, sinks and linear bias": (Causal(), K, LAST, PACKED, ScoresConfig(bias=ALiBiConfig(), sinks=True)),
}
OTHERS = {name: kernel for name, kernel in KERNELS.items() if name not in ("plain", "one block", "one chunk")}
COMPARED = [
    pytest.param(kernel, case, id=f"{name}: {title}")
    for name, kernel in OTHERS.items()
    for title, case in CASES.items()
    if _gives(kernel, case[-1])
]


def _draw(case: tuple[Mask, int, SequenceInfo, SequenceInfo | None, ScoresConfig], dtype=jnp.float32):
    """Queries, keys, values, table and sinks, and cotangent, zero at padding, for a case."""
    _, kv_heads, queries, slots, _ = case
    real = 1 if queries.segment_ids_BT is None else (queries.segment_ids_BT != 0)[:, None, :, None]
    generator, length = np.random.default_rng(1), queries.positions_BT.shape[1]
    keys = length if slots is None else slots.positions_BT.shape[1]
    shapes = [(B, N, length, H), (B, kv_heads, keys, H), (B, kv_heads, keys, H), (8, N), (B, N, length, H), (N,)]
    q, k, v, table, cotangent, sinks = (np.float32(generator.normal(size=shape)) for shape in shapes)
    return tuple(x.astype(dtype) for x in (q, k, v)), (table, sinks), (cotangent * real).astype(dtype), real


def _outcome(kernel, case, dtype=jnp.float32):
    """Output at real tokens and the gradients of q, k, v, table and sinks."""
    mask, _, queries, slots, scores = case
    arrays, learned, cotangent, real = _draw(case, dtype)

    @jax.jit
    def run(arrays, learned, cotangent):
        def attend(arrays, learned):
            table, sinks = learned
            pairs = Pairs(mask, queries, slots, scores, table, sinks if scores.sinks else None)
            return kernel.attend(*arrays, pairs)

        y, pull = jax.vjp(attend, arrays, learned)
        return y * real, pull(cotangent)

    y, (gradients, learned_gradients) = run(arrays, learned, cotangent)
    return dict(zip(("y", "q", "k", "v", "table", "sinks"), (y, *gradients, *learned_gradients), strict=True))


@functools.cache
def _plain(title: str):
    return _outcome(PlainKernel(), CASES[title])


@pytest.mark.parametrize(("kernel", "case"), COMPARED)
def test_all_kernels_give_what_the_plain_one_gives(kernel, case):
    assert type(kernel) is not PlainKernel
    expected = _plain(next(title for title in CASES if CASES[title] is case))
    for name, actual in _outcome(kernel, case).items():
        assert actual.dtype == jnp.float32
        np.testing.assert_allclose(actual, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
        absent = {"table"} - ({"table"} if isinstance(case[-1].bias, RelativeBiasConfig) else set())
        absent |= set() if case[-1].sinks else {"sinks"}
        assert (np.abs(actual).max() > 0.1) == (name not in absent), name


def test_the_kernels_that_are_compared_are_of_all_types():
    assert {type(case.values[0]) for case in COMPARED} == {BlockedKernel, ChunkedKernel, DotProductKernel}
    refused = [case for case in CASES.values() if not _gives(DotProductKernel(), case[-1])]
    assert refused and all(case[-1].softcap or case[-1].sinks for case in refused)


@pytest.mark.parametrize("title", ["causal of one key/value head, packed, learned bias", "cache, linear bias"])
@pytest.mark.parametrize("kernel", OTHERS.values(), ids=OTHERS)
def test_bfloat16_stays_near_float32(kernel, title):
    assert type(kernel) is not PlainKernel
    for name, actual in _outcome(kernel, CASES[title], jnp.bfloat16).items():
        assert actual.dtype == (jnp.float32 if name in ("table", "sinks") else jnp.bfloat16)
        error = np.abs(np.asarray(actual, np.float32) - _plain(title)[name]).max()
        assert error <= 0.04 * np.abs(_plain(title)[name]).max(), name


def test_a_model_may_change_its_kernel():
    def run(kernel):
        block = tiny.tiny_llama().segments[0].blocks[0]
        block = dataclasses.replace(block, mixer=dataclasses.replace(block.mixer, kernel=kernel))
        config = tiny.tiny_llama()
        segments = (dataclasses.replace(config.segments[0], blocks=(block,)),)
        execution = dataclasses.replace(config.execution, remat="projections")
        model = Transformer(dataclasses.replace(config, segments=segments, execution=execution))
        tokens, params = tiny.tokens(2, 8), tiny.parameters(model)
        loss = lambda params: jnp.sum(jnp.sin(model.apply({"params": params}, tokens).logits_BTV))  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(params)

    expected = run(PlainKernel())
    for kernel in OTHERS.values():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), run(kernel), expected)


@pytest.mark.parametrize("kernel", [BlockedKernel, ChunkedKernel])
def test_a_block_holds_at_least_one_query(kernel):
    with pytest.raises(ValueError, match="block is 0"):
        kernel(0)


@pytest.mark.parametrize("kernel", [DotProductKernel, TokamaxKernel])
def test_an_unknown_implementation_is_refused(kernel):
    with pytest.raises(ValueError, match="implementation is 'xlaa'.*did you mean 'xla'"):
        kernel("xlaa")


@pytest.mark.parametrize(
    ("kernel", "scores", "message"),
    [
        (DotProductKernel(), ScoresConfig(softcap=50.0), "softcap is 50.0 and kernel DotProductKernel.*ChunkedKernel"),
        (TokamaxKernel(), ScoresConfig(None, 50.0, ALiBiConfig()), "softcap is 50.0.*TokamaxKernel.*ChunkedKernel"),
        (DotProductKernel(), ScoresConfig(sinks=True), "sinks is True and kernel DotProductKernel.*ChunkedKernel"),
        (TokamaxKernel(), ScoresConfig(sinks=True), "sinks is True and kernel TokamaxKernel.*ChunkedKernel"),
        (SplashKernel(), ScoresConfig(sinks=True), "sinks is True and kernel SplashKernel.*ChunkedKernel"),
    ],
)
def test_scores_that_a_kernel_cannot_give_are_refused_by_the_config(kernel, scores, message):
    with pytest.raises(ValueError, match=message):
        AttentionConfig(heads=4, head_dim=8, kv_heads=2, kernel=kernel, scores=scores)
    AttentionConfig(heads=4, head_dim=8, kv_heads=2, kernel=ChunkedKernel(), scores=scores)
    AttentionConfig(heads=4, head_dim=8, kv_heads=2, kernel=kernel)


def test_cudnn_is_not_asked_for_float32():
    pairs = Pairs(Causal(), ROW, None, ScoresConfig())
    with pytest.raises(ValueError, match="activations are float32.*Precision.compute to bfloat16"):
        DotProductKernel("cudnn").attend(Q, KEYS, VALUES, pairs)


@pytest.mark.parametrize(
    "mask",
    [Causal(), Causal(3), Bidirectional(), BidirectionalWindow(2)],
    ids=["causal", "window", "bidirectional", "bidirectional window"],
)
def test_functions_of_others_are_told_the_mask_by_name_where_it_is_all(mask):
    whole = fused.arguments(N, Pairs(mask, ROW, None, ScoresConfig()))
    assert "mask" not in whole
    for queries, slots in ((PACKED, None), (LAST, PACKED), (ROW, ROW)):
        given = fused.arguments(N, Pairs(mask, queries, slots, ScoresConfig()))
        assert "mask" in given and "is_causal" not in given


def test_without_tokamax_its_kernel_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokamax", None)  # as if it were not there
    with pytest.raises(ValueError, match=r"tokamax cannot be imported: pip install tokamax.*llm_jax\[gpu\]"):
        TokamaxKernel().attend(Q, KEYS, VALUES, Pairs(Causal(), ROW, None, ScoresConfig()))


@pytest.mark.parametrize("title", [title for title, case in CASES.items() if _gives(TokamaxKernel(), case[-1])])
def test_tokamax_gives_what_the_plain_kernel_gives(title):
    pytest.importorskip("tokamax", reason="tokamax is not installed: TokamaxKernel is not compared")
    for name, actual in _outcome(TokamaxKernel("xla"), CASES[title]).items():
        np.testing.assert_allclose(actual, _plain(title)[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kernel", [PlainKernel(), BlockedKernel(3), ChunkedKernel(3)], ids=str)
def test_values_may_have_another_size_than_keys(kernel):
    allowed = np.broadcast_to(np.tril(np.ones((T, T), bool)), (B, T, T))
    pairs = Pairs(Causal(), SequenceInfo(jnp.broadcast_to(jnp.arange(T), (B, T))), None, ScoresConfig())
    run = lambda q, k, v: kernel.attend(q, k, v[..., :3], pairs)  # noqa: E731
    reference = lambda q, k, v: _reference(q, k, v[..., :3], allowed)  # noqa: E731
    cotangent = jnp.asarray(GENERATOR.normal(size=(B, N, T, 3)), jnp.float32)
    actual, expected = (jax.jit(lambda c, f=f: _value_and_gradients(f, c))(cotangent) for f in (run, reference))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected)


@pytest.mark.parametrize("title", CASES)
def test_weights_are_those_by_which_values_are_multiplied(title):
    case = CASES[title]
    mask, _, queries, slots, scores = case
    (q, k, v), (table, sinks), _, real = _draw(case)
    pairs = Pairs(mask, queries, slots, scores, table, sinks if scores.sinks else None)
    found = weights(q, k, pairs)
    assert found.dtype == jnp.float32
    y = jnp.einsum("bnts,bnsh->bnth", found, jnp.repeat(v, N // v.shape[1], axis=1))
    expected = PlainKernel().attend(q, k, v, pairs)
    np.testing.assert_allclose(y * real, expected * real, rtol=1e-5, atol=1e-5)

"""The seam of linear recurrences: every form gives what a loop over tokens gives, and so do its gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layers.recurrent.matrix_recurrence import ChunkwiseForm, ParallelForm, RecurrentForm, RecurrentState, recur
from llm_jax.layers.sequence import SequenceInfo

B, K, N, T, H, P = 3, 2, 4, 11, 3, 5
GENERATOR = np.random.default_rng(0)
SEGMENTS = np.array(
    [[1, 1, 1, 1, 2, 2, 2, 3, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2], [1, 0, 1, 1, 0, 0, 1, 2, 2, 0, 2]]
)
"""Packed with padding at the right, packed with padding at the left, padding within documents."""
FORMS = {
    "parallel": ParallelForm(),
    "chunks of 1": ChunkwiseForm(1),
    "chunks of 4": ChunkwiseForm(4),
    "recurrent": RecurrentForm(),
}


def _inputs(length: int = T, seed: int = 0) -> tuple[jax.Array, ...]:
    """q, k, v and logarithms of decays between 0.05 and 1."""
    generator = np.random.default_rng(seed)
    shapes = ((B, K, length, H), (B, K, length, H), (B, N, length, P))
    q, k, v = (generator.normal(size=shape) for shape in shapes)
    log = np.log(generator.uniform(0.05, 1, (B, N, length)))
    return tuple(jnp.asarray(array, jnp.float32) for array in (q, k, v, log))


def _reference(q, k, v, log, segments):
    """y_t = sum over s <= t of its document: (q_t . k_s) v_s times the decays of the real tokens after s up to t."""
    q, k, v, log = (np.asarray(array, np.float64) for array in (q, k, v, log))
    q, k = (np.repeat(array, N // K, axis=1) for array in (q, k))
    y = np.zeros(v.shape)
    for row, end in np.ndindex(segments.shape):
        for start in range(end + 1):
            if segments[row, end] == 0 or segments[row, start] != segments[row, end]:
                continue
            for head in range(N):
                between = log[row, head, start + 1 : end + 1][segments[row, start + 1 : end + 1] != 0]
                score = q[row, head, end] @ k[row, head, start] * np.exp(between.sum())
                y[row, head, end] += score * v[row, head, start]
    return y


def _place(segments: np.ndarray | None, length: int = T) -> SequenceInfo:
    # Positions are not what tells documents apart.
    positions = jnp.broadcast_to(jnp.arange(length), (B, length))
    return SequenceInfo(positions, None if segments is None else jnp.asarray(segments, jnp.int32))


@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one document", "packed"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_form_gives_what_a_double_loop_gives(form, segments):
    inputs = _inputs()
    real = np.ones((B, T), int) if segments is None else segments
    y, memory = jax.jit(lambda *x: recur(form, *x, _place(segments)))(*inputs)
    assert memory is None and y.dtype == jnp.float32 and np.isfinite(y).all()
    visible = (real != 0)[:, None, :, None]
    np.testing.assert_allclose(y * visible, _reference(*inputs, real), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cached", [False, True], ids=["row", "state"])
@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one document", "packed"])
def test_gradients_are_those_of_the_recurrence(segments, cached):
    inputs = _inputs()
    real = np.ones((B, T), int) if segments is None else segments
    weight = jnp.asarray(GENERATOR.normal(size=(B, N, T, P)) * (real != 0)[:, None, :, None], jnp.float32)
    matrix = jnp.asarray(GENERATOR.normal(size=(B, N, H, P)), jnp.float32)

    def loss(form, inputs, matrix):
        # The state is of document 1, which goes on where the row begins with it.
        memory = RecurrentState(matrix, jnp.ones(B, jnp.int32)) if cached else None
        y, memory = recur(form, *inputs, _place(segments), memory)
        return jnp.sum(y * weight) + (jnp.sum(jnp.sin(memory.matrix_BNHP)) if cached else 0)

    def gradients(form):
        return jax.jit(jax.grad(lambda *x: loss(form, *x), argnums=(0, 1)))(inputs, matrix)

    expected = gradients(RecurrentForm())
    assert all(np.abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(expected)[: 5 if cached else 4])
    for form in (ParallelForm(), ChunkwiseForm(4)):
        for actual, wanted in zip(jax.tree.leaves(gradients(form)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_windows_with_a_state_give_what_the_whole_row_gives(form, window):
    inputs = _inputs()
    run = jax.jit(lambda x, sequence, memory: recur(form, *x, sequence, memory))
    memory, parts = RecurrentState.empty(B, N, H, P), []
    for start in range(0, T, window):
        part = slice(start, start + window)
        sequence = _place(SEGMENTS[:, part], SEGMENTS[:, part].shape[1])
        y, memory = run(tuple(array[:, :, part] for array in inputs), sequence, memory)
        parts.append(y)
    real = (SEGMENTS != 0)[:, None, :, None]
    expected = _reference(*inputs, SEGMENTS)
    np.testing.assert_allclose(np.concatenate(parts, axis=2) * real, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(memory.document_B, [3, 2, 2])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_padding_leaves_the_state_as_it_was_to_the_bit(form):
    q, k, v, log = _inputs(4)
    before = RecurrentState(jnp.asarray(GENERATOR.normal(size=(B, N, H, P)), jnp.float32), jnp.full(B, 7, jnp.int32))
    _, after = jax.jit(lambda: recur(form, q, k, v, log, _place(np.zeros((B, 4)), 4), before))()
    np.testing.assert_array_equal(after.matrix_BNHP, before.matrix_BNHP)
    np.testing.assert_array_equal(after.document_B, before.document_B)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_another_document_finds_an_empty_state(form):
    q, k, v, log = _inputs(4)
    old = RecurrentState(jnp.full((B, N, H, P), 1e6), jnp.full(B, 7, jnp.int32))
    sequence = _place(np.full((B, 4), 8), 4)
    run = jax.jit(lambda memory: recur(form, q, k, v, log, sequence, memory))
    fresh, continued = run(RecurrentState.empty(B, N, H, P)), run(old)
    for actual, expected in zip(jax.tree.leaves(continued), jax.tree.leaves(fresh), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_state_is_float32_in_every_precision_and_does_not_lose_small_terms(form):
    # 1 + many terms of 2^-10, which bfloat16 would drop one by one.
    length = 65
    ones = jnp.ones((1, 1, length, 1), jnp.bfloat16)
    v = ones.at[:, :, 1:].set(2.0**-10)
    sequence = SequenceInfo(jnp.arange(length)[None], jnp.ones((1, length), jnp.int32))
    run = jax.jit(lambda empty: recur(form, ones, ones, v, jnp.zeros((1, 1, length)), sequence, empty))
    _, memory = run(RecurrentState.empty(1, 1, 1, 1))
    assert memory.matrix_BNHP.dtype == jnp.float32
    np.testing.assert_allclose(memory.matrix_BNHP.item(), 1 + 64 * 2.0**-10, rtol=1e-6)


def test_strong_decays_give_no_infinities_and_no_nans():
    q, k, v, _ = _inputs()
    log = jnp.full((B, N, T), -80.0)
    for form in FORMS.values():
        loss = lambda *x, form=form: jnp.sum(recur(form, *x, _place(SEGMENTS))[0] ** 2)  # noqa: E731
        for leaf in jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(q, k, v, log):
            assert np.isfinite(leaf).all()


def _temporary_bytes(form, length: int) -> int:
    shapes = [jax.ShapeDtypeStruct((1, 2, length, 16), jnp.float32)] * 3
    log = jax.ShapeDtypeStruct((1, 2, length), jnp.float32)
    sequence = SequenceInfo(jnp.zeros((1, length), jnp.int32), jnp.ones((1, length), jnp.int32))
    loss = lambda *x: jnp.sum(recur(form, *x, sequence)[0] ** 2)  # noqa: E731
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(*shapes, log).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_chunks_grows_with_the_length_and_that_of_all_scores_with_its_square():
    assert _temporary_bytes(ChunkwiseForm(32), 2048) <= 2.2 * _temporary_bytes(ChunkwiseForm(32), 1024)
    assert _temporary_bytes(ParallelForm(), 1024) >= 3.5 * _temporary_bytes(ParallelForm(), 512)


@pytest.mark.parametrize("chunk", [16, 64])
def test_flops_are_those_of_the_compiler(chunk):
    length, heads, size = 64, 2, 32
    shapes = [jax.ShapeDtypeStruct((1, heads, length, size), jnp.float32)] * 3
    sequence, log = SequenceInfo(jnp.zeros((1, length), jnp.int32)), np.zeros((1, heads, length), np.float32)
    lowered = jax.jit(lambda *x: recur(ChunkwiseForm(chunk), *x, log, sequence)[0]).lower(*shapes)
    # The chunks' scores that are not allowed are made as well; what is no product of matrices comes on top.
    forbidden = (chunk - (chunk + 1) / 2) * 4 * heads * size
    counted = ChunkwiseForm(chunk).flops(length, heads, heads, size, size) + forbidden
    compiled = lowered.cost_analysis()["flops"] / length
    assert counted < compiled < 1.25 * counted


def test_the_forms_are_counted_by_what_they_do():
    sizes = (2, 4, 8, 16)
    assert RecurrentForm().flops(100, *sizes) == 4 * 4 * 8 * 16
    assert ParallelForm().flops(99, *sizes) == 100 * (2 * 8 + 4 * 16)
    assert ChunkwiseForm(9).flops(99, *sizes) == 10 * (2 * 8 + 4 * 16) + 4 * 4 * 8 * 16
    assert ChunkwiseForm(256).flops(99, *sizes) == ParallelForm().flops(99, *sizes)


def test_a_chunk_of_nothing_is_refused():
    with pytest.raises(ValueError, match="chunk is 0"):
        dataclasses.replace(ChunkwiseForm(), chunk=0)

"""Retention against the formula of the paper, written out for each token."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.core.dtypes import Precision
from llm_jax.layers.context import Context
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.layers.recurrent.matrix_recurrence import ChunkwiseForm, ParallelForm, RecurrentForm
from llm_jax.layers.recurrent.retention import PowerDecays, RetentionConfig, SpacedDecays
from llm_jax.layers.sequence import SequenceInfo

B, T, D, N, H, P = 2, 9, 12, 3, 4, 6
CONFIG = RetentionConfig(N, H, P)
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(B, T, D)).astype(np.float32)
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 2, 2, 2, 2, 2, 2, 3]], np.int32)
POSITIONS = np.array([[0, 1, 2, 3, 0, 1, 2, 0, 0], [0, 1, 0, 1, 2, 3, 4, 5, 0]], np.int32)
PACKED = SequenceInfo(POSITIONS, SEGMENTS)
REAL = (SEGMENTS != 0)[..., None]
FORMS = {"parallel": ParallelForm(), "chunks": ChunkwiseForm(4), "recurrent": RecurrentForm()}


def _module(config):
    return config.build(D, Precision(), None)


def _params(config):
    shapes = jax.eval_shape(_module(config).init, jax.random.key(0), X, Context(PACKED))["params"]
    draw = lambda leaf: jnp.asarray(0.5 * np.random.default_rng(leaf.size).normal(size=leaf.shape), jnp.float32)  # noqa: E731
    return jax.tree.map(draw, nn.unbox(shapes))


PARAMS = _params(CONFIG)


def _reference(params, x, segments, positions):
    """Sun et al. 2023, eq. 6 and 8 with complex rotation: y_n = sum over m of gamma^(n - m) Re(q_n e^(i n theta)
    conj(k_m e^(i m theta))) v_m / sqrt(H), normalised by head, gated."""
    kernel = {name: np.asarray(params[name]["kernel"], np.float64) for name in params}
    theta = 10_000.0 ** (-np.arange(0, H, 2) / H)
    y = np.zeros((B, T, D))
    for row in range(B):
        for n in range(T):
            heads = np.zeros((N, P))
            for head in range(N):
                gamma = 1 - 2.0 ** (-5 - head)
                for m in range(n + 1):
                    if segments[row, m] != segments[row, n] or segments[row, n] == 0:
                        continue
                    query, key = x[row, n] @ kernel["query"][:, head], x[row, m] @ kernel["key"][:, head]
                    turned = [
                        (vector[: H // 2] + 1j * vector[H // 2 :]) * np.exp(1j * positions[row, index] * theta)
                        for vector, index in ((query, n), (key, m))
                    ]
                    score = (turned[0] @ turned[1].conj()).real / np.sqrt(H)
                    heads[head] += gamma ** (n - m) * score * (x[row, m] @ kernel["value"][:, head])
                heads[head] -= heads[head].mean()
                heads[head] /= np.sqrt((heads[head] ** 2).mean() + CONFIG.epsilon)
            gate = np.einsum("d,dnp->np", x[row, n], kernel["gate"])
            y[row, n] = np.einsum("np,npd->d", gate / (1 + np.exp(-gate)) * heads, kernel["out"])
    return y


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_retention_is_that_of_the_paper(form):
    module = _module(dataclasses.replace(CONFIG, form=form))
    y, state = jax.jit(module.apply)({"params": PARAMS}, X, Context(PACKED))
    assert state is None
    expected = _reference(PARAMS, np.asarray(X, np.float64), SEGMENTS, POSITIONS)
    np.testing.assert_allclose(y * REAL, expected * REAL, rtol=1e-4, atol=1e-5)


def test_gradients_of_all_forms_are_equal():
    weight = GENERATOR.normal(size=(B, T, D)) * REAL

    def gradients(form):
        module = _module(dataclasses.replace(CONFIG, form=form))
        loss = lambda params, x: jnp.sum(module.apply({"params": params}, x, Context(PACKED))[0] * weight)  # noqa: E731
        return jax.jit(jax.grad(loss, argnums=(0, 1)))(PARAMS, X)

    expected = gradients(RecurrentForm())
    for form in (ParallelForm(), ChunkwiseForm(4)):
        for (path, actual), (_, wanted) in zip(
            trees.named_leaves(gradients(form)), trees.named_leaves(expected), strict=True
        ):
            scale = np.abs(wanted).max()
            assert scale > 0.1
            np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5 * scale, err_msg=path)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_row_may_come_window_by_window(form):
    module = _module(dataclasses.replace(CONFIG, form=form))
    apply, state, parts = jax.jit(module.apply), CONFIG.allocate(B, T, jnp.bfloat16), []
    assert state.matrix_BNHP.shape == (B, N, H, P) and state.matrix_BNHP.dtype == jnp.float32
    for start, end in ((0, 4), (4, 8), (8, 9)):
        sequence = SequenceInfo(*(array[:, start:end] for array in (PACKED.positions_BT, PACKED.segment_ids_BT)))
        y, state = apply({"params": PARAMS}, X[:, start:end], Context(sequence), state)
        parts.append(y)
    whole, _ = apply({"params": PARAMS}, X, Context(PACKED))
    np.testing.assert_allclose(np.concatenate(parts, axis=1) * REAL, whole * REAL, rtol=1e-4, atol=1e-5)


def test_a_score_depends_on_the_distance_and_not_on_the_places():
    module, sequence = _module(CONFIG), SequenceInfo(jnp.broadcast_to(jnp.arange(T), (B, T)))
    moved = SequenceInfo(sequence.positions_BT + 5)
    apply = jax.jit(module.apply)
    here, there = (apply({"params": PARAMS}, X, Context(where))[0] for where in (sequence, moved))
    np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-5)
    still = jax.jit(_module(dataclasses.replace(CONFIG, position=None)).apply)(
        {"params": PARAMS}, X, Context(sequence)
    )[0]
    assert np.abs(still - here).max() > 1e-2


def test_a_head_is_normalised_so_that_the_size_of_its_values_is_nothing():
    larger = PARAMS | {"value": {"kernel": 100 * PARAMS["value"]["kernel"]}}
    sequence = Context(SequenceInfo(jnp.broadcast_to(jnp.arange(T), (B, T))))
    apply = jax.jit(_module(CONFIG).apply)
    y, same = (apply({"params": params}, X, sequence)[0] for params in (PARAMS, larger))
    np.testing.assert_allclose(y, same, rtol=1e-2, atol=1e-2)


def test_decays_are_those_of_the_paper():
    np.testing.assert_allclose(np.exp(PowerDecays().logarithms(4)), [1 - 1 / 32, 1 - 1 / 64, 1 - 1 / 128, 1 - 1 / 256])
    spaced = 1 - np.exp(SpacedDecays().logarithms(5).astype(np.float64))
    np.testing.assert_allclose(spaced, [1 / 32, 1 / 64, 1 / 128, 1 / 256, 1 / 512], rtol=1e-4)


def test_parameters_and_flops_are_those_of_the_section_on_training():
    # W_Q and W_K are d x d, W_V, W_G and W_O d x 2d: 8 d^2.
    config = RetentionConfig(4, 16, 32)
    assert config.parameters(64) == 8 * 64**2
    assert config.matrix_flops(64) == 16 * 64**2
    assert CONFIG.parameters(D) == trees.count(PARAMS)
    assert config.shape == "4 of 16, values of 32"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0}, "heads is 0"),
        ({"head_dim": 3}, "since RoPE rotates pairs"),
        ({"position": RoPEConfig(features=6)}, "features is 6 and head_dim is 4: features must not exceed head_dim"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **options)
    with pytest.raises(ValueError, match="last is 1: a decay of 1 - last must lie between 0 and 1"):
        SpacedDecays(last=1)

"""Slots are means of tokens, tokens are means of slots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from llm_jax.core import trees
from llm_jax.core.dtypes import Precision
from llm_jax.layers.ffn.dispatch.slots import Slots
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.soft import SoftConfig
from tests.helpers import routing

BATCH, LENGTH, WIDTH, EXPERTS, SLOTS = 2, 6, 5, 3, 2
X = np.random.default_rng(0).normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
REAL = np.arange(LENGTH)[None] < np.array([[6], [4]])
MOE = MoEConfig(EXPERTS, GLUConfig(7, "silu"), SoftConfig(SLOTS, LENGTH), Slots())


def _made():
    layer = MOE.build(WIDTH, Precision(), "moe")
    shapes = jax.eval_shape(layer.init, jax.random.key(0), X, routing.context(REAL))
    generator = np.random.default_rng(1)
    return layer, jax.tree.map(
        lambda leaf: generator.normal(size=leaf.shape).astype(np.float32), meta.unbox(shapes)["params"]
    )


def _expected(params, x, real):
    """One row, from the paper's algorithm 1 and section 2.3."""
    x = x[real].astype(np.float64)
    phi = params["router"]["scores"]["kernel"].astype(np.float64)
    cosines = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (phi / np.linalg.norm(phi, axis=0))
    logits = params["router"]["scale"][0] * cosines
    slots = (routing.softmax(logits, 0).T @ x).reshape(EXPERTS, SLOTS, WIDTH)
    gate, up, down = (params["experts"][name]["kernel"].astype(np.float64) for name in ("gate", "up", "down"))
    made = []
    for expert in range(EXPERTS):
        gates = slots[expert] @ gate[expert]
        made.append((gates * routing.sigmoid(gates) * (slots[expert] @ up[expert])) @ down[expert])
    return routing.softmax(logits, 1) @ np.concatenate(made)


def test_a_layer_is_what_the_paper_computes_and_padding_is_0():
    layer, params = _made()
    y, report = layer.apply({"params": params}, X, routing.context(REAL))
    for row in range(BATCH):
        np.testing.assert_allclose(y[row][REAL[row]], _expected(params, X[row], REAL[row]), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(y[row][~REAL[row]], 0)
    statistics = report.statistics
    assert statistics.tokens == REAL.sum() and statistics.unserved == 0
    np.testing.assert_allclose([statistics.load_E.sum(), statistics.dropped], [REAL.sum(), 0], atol=1e-5)


def test_what_padding_holds_changes_nothing():
    layer, params = _made()
    run = jax.jit(lambda x: layer.apply({"params": params}, x, routing.context(REAL))[0])
    gradient = jax.grad(lambda x: jnp.sum(run(x) ** 2))(jnp.asarray(X))
    np.testing.assert_array_equal(run(X), run(np.where(REAL[..., None], X, np.inf)))
    assert np.isfinite(gradient).all() and not np.asarray(gradient)[~REAL].any()


def test_a_row_of_padding_is_0():
    layer, params = _made()
    y, _ = layer.apply({"params": params}, X, routing.context(np.zeros_like(REAL)))
    np.testing.assert_array_equal(y, 0)


def test_costs_are_those_of_its_parameters_and_products():
    _, params = _made()
    assert trees.count(params) == MOE.parameters(WIDTH)
    slots = EXPERTS * SLOTS
    expert = MOE.expert.matrix_flops(WIDTH)
    assert MOE.matrix_flops(WIDTH) == pytest.approx(3 * 2 * WIDTH * slots + slots / LENGTH * expert)
    assert MOE.non_causal == ("SoftConfig",)


def test_a_dispatch_that_has_no_slots_is_refused():
    with pytest.raises(
        ValueError, match="SoftConfig returns SoftAssignment and dispatch Dropless supports Choice or Picks"
    ):
        MoEConfig(EXPERTS, GLUConfig(7, "silu"), SoftConfig(SLOTS, LENGTH))

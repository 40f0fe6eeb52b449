"""Memory of the dropless dispatch, by the compiler's analysis.

Legend: B batch, T length, D model width, E experts, K choices of a token.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from llm_jax.core.dtypes import Precision
from llm_jax.layers.ffn.balance import LoadLoss, ZLoss
from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.experts import Local
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.layers.ffn.routing import Choice
from llm_jax.planning.program import Program, read
from llm_jax.sharding.device_group import DeviceGroup
from tests.helpers import routing

B, T, D, F = 2, 512, 64, 32


@functools.cache
def _program(experts: int, top: int) -> Program:
    """Forward and backward pass of a layer."""
    config, alone = GLUConfig(F), DeviceGroup((), 1)
    shape = lambda *sizes, dtype="float32": jax.ShapeDtypeStruct(sizes, dtype)  # noqa: E731
    weights = {name: (shape(experts, D, F), None) for name in ("gate", "up")} | {"down": (shape(experts, F, D), None)}

    def total(weights, x_BTD, weights_BTK, experts_BTK):
        local, routes = Local(config, weights, experts, alone, alone), Choice(experts_BTK, weights_BTK)
        return jnp.sum(Dropless().run(local, x_BTD, routes, jnp.ones((B, T), bool))[0] ** 2)

    arguments = weights, shape(B, T, D), shape(B, T, top), shape(B, T, top, dtype="int32")
    return read(jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*arguments).compile())


def _temporary(experts: int, top: int) -> int:
    """Bytes beside weights and their gradients."""
    return _program(experts, top).memory.temporary


def test_memory_does_not_grow_with_experts_but_for_their_weights():
    kernels = 3 * D * F * 4
    assert _temporary(64, 4) < _temporary(8, 4) + 1.1 * (64 - 8) * kernels


def test_a_whole_layer_needs_no_row_of_experts_for_every_choice():
    """Router, report and balance loss included: scores are [B, T, E], and nothing is K times as much."""
    top, context = 8, routing.context(np.ones((B, T), bool))

    def temporary(experts: int) -> int:
        config = MoEConfig(experts, GLUConfig(4), SoftmaxConfig(top), balance=(LoadLoss(), ZLoss()))
        layer = config.build(D, Precision(), "moe")
        x_BTD = jax.ShapeDtypeStruct((B, T, D), jnp.float32)
        params = jax.eval_shape(lambda x: meta.unbox(layer.init(jax.random.key(0), x, context)), x_BTD)

        def total(params, x_BTD):
            y_BTD, report = layer.apply(params, x_BTD, context)
            return jnp.sum(y_BTD**2) + jnp.sum(report.loss_B) + report.batch.total

        program = read(jax.jit(jax.grad(total, argnums=(0, 1))).lower(params, x_BTD).compile())
        return program.memory.temporary - 2 * 3 * experts * D * 4 * 4

    assert temporary(256) - temporary(16) < 5 * B * T * (256 - 16) * 4


def test_memory_is_that_of_the_choices():
    row = B * T * 4 * (D + F) * 4
    assert _temporary(8, 4) < 6 * row
    assert _temporary(8, 8) == pytest.approx(2 * _temporary(8, 4), rel=0.25)


def _sizes(jaxpr) -> Iterator[int]:
    """Of all arrays that a program makes, however deep."""
    for equation in jaxpr.eqns:
        yield from (value.aval.size for value in equation.outvars)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if hasattr(inner, "eqns"):
                yield from _sizes(inner)


def test_no_array_has_tokens_experts_and_places():
    experts, top = 64, 4
    config, alone = GLUConfig(F), DeviceGroup((), 1)
    weights = {name: (jnp.zeros((experts, D, F)), None) for name in ("gate", "up")}
    weights |= {"down": (jnp.zeros((experts, F, D)), None)}
    local = Local(config, weights, experts, alone, alone)
    routes = Choice(jnp.zeros((B, T, top), jnp.int32), jnp.ones((B, T, top)))
    run = lambda x_BTD: jnp.sum(Dropless().run(local, x_BTD, routes, jnp.ones((B, T), bool))[0])  # noqa: E731
    made = jax.make_jaxpr(jax.grad(run))(jnp.zeros((B, T, D))).jaxpr
    held = {leaf.size for leaf in jax.tree.leaves(weights)}
    largest = max(size for size in _sizes(made) if size not in held)
    assert largest <= B * T * top * D

"""Tokens, routes and experts to try ways of dispatch with.

Legend: B batch, T length, D model width, F ffn width, E experts, K choices of a token, G groups of a row, N tokens of a
group, C tokens that an expert takes of a group.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from llm_jax.layers.ffn.dispatch import Dispatch
from llm_jax.layers.ffn.experts import Local, names
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.ffn.routing import Choice, Picks
from llm_jax.sharding.device_group import DeviceGroup

EXPERT = GLUConfig(6, bias=True)
WIDTH = 8


def weights(count: int, seed: int = 0) -> dict[str, Any]:
    """Of so many experts, at a scale that keeps results near 1."""
    generator = np.random.default_rng(seed)
    found = {}
    for name in names(EXPERT):
        inputs, outputs = (EXPERT.hidden, WIDTH) if name == "down" else (WIDTH, EXPERT.hidden)
        kernel_EDF = generator.normal(0, inputs**-0.5, (count, inputs, outputs))
        found[name] = tuple(jnp.asarray(x, jnp.float32) for x in (kernel_EDF, generator.normal(size=(count, outputs))))
    return found


def tokens(*shape: int, seed: int = 0) -> jax.Array:
    """[*shape, D]."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*shape, WIDTH)), jnp.float32)


def choices(batch: int, length: int, count: int, top: int, seed: int = 0) -> Choice:
    """Random ones."""
    generator = np.random.default_rng(seed)
    experts_RK = np.stack([generator.permutation(count)[:top] for _ in range(batch * length)])
    weights_BTK = generator.uniform(0.1, 1, (batch, length, top))
    return choice(experts_RK.reshape(batch, length, top), weights_BTK)


def choice(experts_BTK: Any, weights_BTK: Any) -> Choice:
    """Of arrays."""
    return Choice(jnp.asarray(experts_BTK, jnp.int32), jnp.asarray(weights_BTK, jnp.float32))


@st.composite
def loads(draw: Any, batch: int, length: int, count: int, top: int) -> tuple[Choice, jax.Array]:
    """Routes, and which tokens are real: few different weights and scores, so that many are equal, choices that are
    none, experts that nobody chose, and at times all tokens with the same experts."""
    tokens = batch * length
    order = st.permutations(range(count)).map(lambda order: order[:top])
    experts = draw(order.map(lambda one: [one] * tokens) | st.lists(order, min_size=tokens, max_size=tokens))
    several = lambda of, number: np.reshape(draw(st.lists(of, min_size=number, max_size=number)), (batch, length, -1))  # noqa: E731
    weights_BTK = several(st.sampled_from([0.0, 0.25, 0.5]), tokens * top)
    best_BT = several(st.sampled_from([0.25, 0.5, 0.75]), tokens)[..., 0]
    real_BT = several(st.sampled_from([True, True, False]), tokens)[..., 0]
    routes = choice(np.reshape(experts, (batch, length, top)), weights_BTK)
    return routes.replace(best_BT=jnp.asarray(best_BT, jnp.float32)), jnp.asarray(real_BT)


def picks(batch: int, groups: int, tokens: int, count: int, taken: int, seed: int = 0) -> Picks:
    """Random ones from groups of so many tokens."""
    generator = np.random.default_rng(seed)
    places_SC = np.stack([generator.permutation(tokens)[:taken] for _ in range(batch * groups * count)])
    shape = (batch, groups, count, taken)
    weights_BGEC = jnp.asarray(generator.uniform(0.1, 1, shape), jnp.float32)
    return Picks(jnp.asarray(places_SC.reshape(shape), jnp.int32), weights_BGEC)


def everyone(x_BTD: jax.Array) -> jax.Array:
    """That no token is padding."""
    return jnp.ones(x_BTD.shape[:2], bool)


@functools.partial(jax.jit, static_argnums=0)
def serve(
    dispatch: Dispatch, weights: dict[str, Any], x_BTD: jax.Array, routes: Choice | Picks, real_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What the dispatch gives on a device by itself."""
    count, alone = len(weights["down"][0]), DeviceGroup((), 1)
    return dispatch.run(Local(EXPERT, weights, count, alone, alone), x_BTD, routes, real_BT)


@functools.partial(jax.jit, static_argnums=0)
def both(
    dispatch: Dispatch, weights: dict[str, Any], x_BTD: jax.Array, routes: Choice | Picks, real_BT: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    """What `serve` gives, and the gradients of a sum in which every result counts differently, by weights, tokens and
    the weights of routes."""
    float_of = "weights_BTK" if isinstance(routes, Choice) else "weights_BGEC"

    def total(weights: dict[str, Any], x_BTD: jax.Array, added: jax.Array) -> tuple[jax.Array, Any]:
        y_BTD, served_BT = serve(dispatch, weights, x_BTD, routes.replace(**{float_of: added}), real_BT)
        counted = jnp.sum(y_BTD * jnp.cos(jnp.arange(y_BTD.size, dtype=jnp.float32).reshape(y_BTD.shape)))
        return counted, (y_BTD, served_BT)

    graded = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)
    (_, served), found = graded(weights, x_BTD, getattr(routes, float_of))
    return served, found

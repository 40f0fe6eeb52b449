"""Routers that are given the scores of experts, and what they would make of them written out in numpy.

Legend: B batch, T length, E experts, K choices of a token.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.dtypes import Precision
from llm_jax.layers.context import Context
from llm_jax.layers.ffn.routing import Routed, Router
from llm_jax.layers.sequence import SequenceInfo


def context(real_BT: np.ndarray, tokens_BT: np.ndarray | None = None) -> Context:
    """Rows of one document, some of whose tokens are padding."""
    positions_BT = np.broadcast_to(np.arange(real_BT.shape[1], dtype=np.int32), real_BT.shape)
    made = Context(SequenceInfo(positions_BT, real_BT.astype(np.int32)), tokens_BT=tokens_BT)
    return jax.tree.map(jnp.asarray, made)


def route(
    config: Router,
    logits_BTE: np.ndarray,
    real_BT: np.ndarray | None = None,
    key: jax.Array | None = None,
    **parameters: Any,
) -> Routed:
    """What a router says of tokens whose vectors are the logits: its matrix is the identity. Other parameters by
    name; a key for training."""
    real_BT = np.ones(logits_BTE.shape[:2], bool) if real_BT is None else real_BT
    own = {"scores": {"kernel": np.eye(logits_BTE.shape[-1], dtype=np.float32)}} | parameters
    return _routed(config, own, np.asarray(logits_BTE, np.float32), context(real_BT), key)


@functools.partial(jax.jit, static_argnums=0)
def _routed(config: Router, parameters: Any, x_BTD: jax.Array, context: Context, key: jax.Array | None) -> Routed:
    experts = x_BTD.shape[-1]
    router = config.build(experts, experts, Precision(), "router")
    return router.apply({"params": parameters}, x_BTD, context, rngs=None if key is None else {"dropout": key})


def random_logits(batch: int, length: int, experts: int, seed: int = 0) -> np.ndarray:
    """float32 [B, T, E], spread so that experts differ much."""
    return np.random.default_rng(seed).normal(0, 2, (batch, length, experts)).astype(np.float32)


def softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    """In float64."""
    powers = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """In float64."""
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


def best(ranks_E: np.ndarray, top: int) -> list[int]:
    """The `top` experts that rank highest; of equal ones the first."""
    return sorted(range(len(ranks_E)), key=lambda expert: (-ranks_E[expert], expert))[:top]


def chosen(ranks_BTE: np.ndarray, top: int, limit: Any = None) -> np.ndarray:
    """The experts [B, T, K] of the highest ranks, token by token, those of the best groups only."""
    batch, length, experts = ranks_BTE.shape
    found_BTK = np.zeros((batch, length, top), np.int32)
    for place in np.ndindex(batch, length):
        ranks_E = np.asarray(ranks_BTE[place], np.float64)
        if limit is not None:
            groups = ranks_E.reshape(limit.groups, -1)
            worth = np.array([np.sort(group)[::-1][: limit.best].sum() for group in groups])
            outside = [g for g in range(limit.groups) if g not in best(worth, limit.kept)]
            groups = groups.copy()
            groups[outside] = -np.inf
            ranks_E = groups.reshape(-1)
        found_BTK[place] = best(ranks_E, top)
    return found_BTK


def at(scores_BTE: np.ndarray, experts_BTK: np.ndarray) -> jnp.ndarray:
    """Their scores [B, T, K]."""
    return np.take_along_axis(scores_BTE, np.asarray(experts_BTK), axis=-1)

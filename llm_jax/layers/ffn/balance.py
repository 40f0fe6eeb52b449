"""What keeps the load of experts even.

A balance loss is a config type with `loss(routed, load_BTE, real_BT)`, which gives a float32 loss for each row [B]; a
layer adds them up by their weights, and an objective counts a row's as often as the row has targets.

Legend: B batch, T length, E experts, K choices of a token.
"""

import dataclasses

import jax
import jax.numpy as jnp

from llm_jax.core.checks import check_not_negative
from llm_jax.layers.ffn.routing import Report, Routed, load


@dataclasses.dataclass(frozen=True)
class LoadLoss:
    """E * sum over experts of (share of choices) * (mean probability) over the batch: 1 where the load is even (Fedus
    et al. 2021, arXiv:2101.03961, eq. 4)."""

    weight: float = 0.01

    def __post_init__(self):
        check_not_negative(weight=self.weight)

    def loss(self, routed: Routed, load_BTE: jax.Array, real_BT: jax.Array) -> jax.Array:
        real_BT1 = real_BT[..., None]
        experts = load_BTE.shape[-1]
        share_E = jnp.sum(load_BTE, (0, 1)) / jnp.maximum(jnp.sum(load_BTE), 1)
        mean_E = jnp.sum(routed.scores_BTE * real_BT1, (0, 1)) / jnp.maximum(jnp.sum(real_BT1), 1)
        return jnp.broadcast_to(experts * jnp.sum(share_E * mean_E), real_BT.shape[:1])


@dataclasses.dataclass(frozen=True)
class ZLoss:
    """Mean over the tokens of a row of log(sum(exp(logits)))^2, which keeps logits small (Zoph et al. 2022,
    arXiv:2202.08906, eq. 5)."""

    weight: float = 0.001

    def __post_init__(self):
        check_not_negative(weight=self.weight)

    def loss(self, routed: Routed, load_BTE: jax.Array, real_BT: jax.Array) -> jax.Array:
        squares_BT = jnp.square(jax.nn.logsumexp(routed.logits_BTE, axis=-1))
        return jnp.sum(squares_BT * real_BT, axis=1) / jnp.maximum(jnp.sum(real_BT, axis=1), 1)


Balance = LoadLoss | ZLoss


def report(
    balance: tuple[Balance, ...], routed: Routed, experts: int, served_BT: jax.Array, real_BT: jax.Array
) -> Report:
    """What a layer tells of its tokens, which it served so many choices each."""
    real_BT = real_BT.astype(jnp.float32)
    load_BTE = load(routed.routes, experts, real_BT)
    served_BT = served_BT * real_BT
    losses = [one.weight * one.loss(routed, load_BTE, real_BT) for one in balance]
    importance_E, entropy = jnp.zeros(experts), jnp.zeros(())
    if routed.scores_BTE is not None:
        shares_BTE = routed.scores_BTE / jnp.maximum(jnp.sum(routed.scores_BTE, axis=-1, keepdims=True), 1e-9)
        importance_E = jnp.einsum("BTE,BT->E", shares_BTE, real_BT)
        entropy = jnp.sum(jax.scipy.special.entr(shares_BTE) * real_BT[..., None])
    found = Report(
        loss_B=jnp.zeros(real_BT.shape[:1]),
        tokens=jnp.sum(real_BT),
        load_E=jnp.sum(load_BTE, (0, 1)),
        importance_E=importance_E,
        entropy=entropy,
        dropped=jnp.sum(load_BTE) - jnp.sum(served_BT),
        unserved=jnp.sum((served_BT == 0) * real_BT),
    )
    # Only the losses are to be followed back.
    return jax.lax.stop_gradient(found).replace(loss_B=sum(losses, found.loss_B))

"""Every expert computes every token: the reference for all other dispatches, at E / K times their cost.

Legend: B batch, T length, D model width, E experts, K choices of a token, R tokens of all sequences.
"""

import jax
import jax.numpy as jnp

from llm_jax.core.configclass import configclass
from llm_jax.layers.broadcast import broadcast
from llm_jax.layers.ffn.dispatch import Dispatch
from llm_jax.layers.ffn.experts import Local
from llm_jax.layers.ffn.routing import Choice, Picks, Routes, load, served, spread


@configclass
class Dense(Dispatch):
    """All experts compute all tokens; experts not chosen have weight 0. For small models and tests."""

    def run(self, experts: Local, x_BTD: jax.Array, routes: Routes, real_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See dispatch.__init__."""
        weights_BTE = _weights(served(routes, Choice, Picks), experts.count, real_BT)
        rows_RD = x_BTD.reshape(-1, x_BTD.shape[-1])
        # `broadcast` sums a token's gradient over the experts in float32.
        y_ERD = experts.batched(broadcast(rows_RD, (experts.count, *rows_RD.shape), rows_RD.dtype))
        y_BTD = jnp.einsum("ERD,RE->RD", y_ERD, weights_BTE.reshape(-1, experts.count).astype(y_ERD.dtype))
        return y_BTD.reshape(x_BTD.shape), jnp.sum(load(routes, experts.count, real_BT), axis=-1)


def _weights(routes: Choice | Picks, experts: int, real_BT: jax.Array) -> jax.Array:
    """Weight of each expert for each token [B, T, E], 0 where it is not chosen."""
    if isinstance(routes, Picks):
        return spread(routes, routes.weights_BGEC, real_BT)
    chosen_BTKE = jax.nn.one_hot(routes.experts_BTK, experts)
    return jnp.einsum("BTKE,BTK->BTE", chosen_BTKE, routes.weights_BTK * real_BT[..., None])

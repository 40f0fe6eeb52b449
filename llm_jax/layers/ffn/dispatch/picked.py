"""Dispatch of expert choice: every expert picked the same number of tokens, so no sorting is needed.

Legend: B batch, T length, G groups of a sequence, N tokens of a group, E experts, C tokens that an expert picks from a
group, D model width.
"""

import jax
import jax.numpy as jnp

from llm_jax.layers.broadcast import look_up
from llm_jax.layers.ffn.experts import Local
from llm_jax.layers.ffn.routing import Picks, load


def serve(experts: Local, x_BTD: jax.Array, routes: Picks, real_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """See dispatch.__init__."""
    (batch, groups, count, _), (length, width) = routes.places_BGEC.shape, x_BTD.shape[1:]
    group_BG11 = jnp.arange(batch * groups).reshape(batch, groups, 1, 1)
    # From indices in a group to indices among all tokens, then [B, G, E, C] -> [E, B * G * C].
    tokens_BGEC = group_BG11 * (length // groups) + routes.places_BGEC
    tokens_ES = jnp.moveaxis(tokens_BGEC, 2, 0).reshape(count, -1)
    weights_ES = jnp.moveaxis(routes.weights_BGEC, 2, 0).reshape(count, -1)
    # An expert that has too few real tokens to pick from picked padding.
    weights_ES = jnp.where(real_BT.reshape(-1)[tokens_ES], weights_ES, 0)
    x_RD = x_BTD.reshape(-1, width)
    y_ESD = experts.batched(look_up(x_RD, tokens_ES, x_RD.dtype), weights_ES)
    # Several experts may pick a token: its results are summed in float32, and by `look_up` its gradients.
    y_RD = jnp.zeros(x_RD.shape, jnp.float32).at[tokens_ES].add(y_ESD).astype(x_BTD.dtype)
    return y_RD.reshape(x_BTD.shape), jnp.sum(load(routes, count, real_BT), axis=-1)

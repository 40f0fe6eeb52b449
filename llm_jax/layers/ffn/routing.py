"""What a router decides of the tokens, and what a layer of experts tells of it.

A router is a config type. It has `build(width, experts, precision, name)`, which gives a module called with
(x [B, T, D], context) that returns `Routed`; `check(experts)`, which raises ValueError where it cannot route to so
many; `parameters(width, experts)`; `matrix_flops(width, experts)`, forward FLOPs per token; `choices(experts)`, the
mean number of experts that a token visits; and `causal`, whether no token's route depends on a later one.

Legend: B batch, T length, E experts, K choices of a token, G groups of a row, N tokens of a group,
C tokens that an expert takes of one.
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Choice:
    """The experts that every token chose, the best first.

    Attributes:
      experts_BTK: int32, no expert twice for a token.
      weights_BTK: float32, with which their results are added; 0 for a choice that is none.
    """

    experts_BTK: jax.Array
    weights_BTK: jax.Array


@flax.struct.dataclass
class Picks:
    """The tokens that every expert picked from each group of neighbouring tokens of a row.

    Attributes:
      places_BGEC: int32 places in the group, none twice for an expert.
      weights_BGEC: float32, with which the results are added; 0 for a pick that is none.
    """

    places_BGEC: jax.Array
    weights_BGEC: jax.Array


@flax.struct.dataclass
class Routed:
    """Result of a router.

    Attributes:
      routes: who goes where.
      logits_BTE: float32, what the router made of each token; None for one that does not look at it.
      scores_BTE: float32, how well each expert suits each token, not negative: what balance losses even out; None for
        a router that does not look at tokens.
    """

    routes: Choice | Picks
    logits_BTE: jax.Array | None = None
    scores_BTE: jax.Array | None = None


@flax.struct.dataclass
class Report:
    """What a layer of experts did with the real tokens of a batch: float32 sums over them. A stack's has a leading axis
    for its layers.

    Attributes:
      loss_B: balance losses of each row, weighted and added up.
      tokens: number of tokens.
      load_E: number of tokens that chose each expert, or that it picked, whether it served them or not.
      importance_E: scores given to each expert, each token's adding up to one; 0 without scores.
      entropy: of each token's scores, in nats; 0 without scores.
      dropped: choices that no expert served, for want of capacity.
      unserved: tokens that no expert served.
    """

    loss_B: jax.Array
    tokens: jax.Array
    load_E: jax.Array
    importance_E: jax.Array
    entropy: jax.Array
    dropped: jax.Array
    unserved: jax.Array


def load(routes: Choice | Picks, experts: int, real_BT: jax.Array) -> jax.Array:
    """Which experts each token chose, or was picked by: float32 0 or 1 [B, T, E]; none for a token that is not real."""
    if isinstance(routes, Choice):
        chosen_BTK = (routes.weights_BTK > 0).astype(jnp.float32) * real_BT[..., None]
        return jnp.einsum("BTKE,BTK->BTE", jax.nn.one_hot(routes.experts_BTK, experts), chosen_BTK)
    return spread(routes, (routes.weights_BGEC > 0).astype(jnp.float32), real_BT)


def spread(routes: Picks, values_BGEC: jax.Array, real_BT: jax.Array) -> jax.Array:
    """The value of each pick at its token and expert, 0 elsewhere and for a token that is not real: [B, T, E]."""
    batch, groups, experts = routes.places_BGEC.shape[:3]
    b, g, e = jnp.ogrid[:batch, :groups, :experts]
    zeros_BGNE = jnp.zeros((batch, groups, real_BT.shape[1] // groups, experts), values_BGEC.dtype)
    spread_BGNE = zeros_BGNE.at[b[..., None], g[..., None], routes.places_BGEC, e[..., None]].add(values_BGEC)
    return spread_BGNE.reshape(*real_BT.shape, experts) * real_BT[..., None]

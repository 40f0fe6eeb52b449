"""Routers and the routes that they assign to tokens.

Legend: B batch, T length, E experts, K choices of a token, G groups of a sequence, N tokens of a group, C tokens that
an expert picks from a group, S slots of an expert.
"""

import abc
import functools
import operator
from typing import ClassVar, TypeVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.core.checks import given
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.sharding import axes


@flax.struct.dataclass
class Choice:
    """Token choice: the experts that every token chose, the best first.

    Attributes:
      experts_BTK: int32, no expert twice for a token.
      weights_BTK: float32, weights of their results; 0 for a choice that does not count.
      best_BT: float32 above 0, the highest score of the chosen experts before normalisation; None if the highest weight
        is that score.
    """

    logical_axes: ClassVar = (axes.BATCH, axes.LENGTH)
    """Logical axes along which the arrays may be sharded."""

    experts_BTK: jax.Array
    weights_BTK: jax.Array
    best_BT: jax.Array | None = None


@flax.struct.dataclass
class Picks:
    """Expert choice: the tokens that every expert picked from each group of consecutive tokens of a sequence.

    Attributes:
      places_BGEC: int32 indices in the group, none twice for an expert.
      weights_BGEC: float32, weights of the results; 0 for a pick that does not count.
    """

    places_BGEC: jax.Array
    weights_BGEC: jax.Array

    @property
    def logical_axes(self) -> tuple[str, ...]:
        """Logical axes along which the arrays may be sharded."""
        return (axes.BATCH, axes.LENGTH) if self.places_BGEC.shape[1] > 1 else (axes.BATCH,)


@flax.struct.dataclass
class SoftAssignment:
    """Soft assignment: weights of tokens in slots, and of the results of slots in tokens.

    Attributes:
      dispatch_BTES: float32 weight of each token in each slot; 0 for padding.
      combine_BTES: float32 weight of each slot's result in each token; 0 for padding.
    """

    logical_axes: ClassVar = (axes.BATCH,)
    """Logical axes along which the arrays may be sharded."""

    dispatch_BTES: jax.Array
    combine_BTES: jax.Array


Routes = Choice | Picks | SoftAssignment
Kind = TypeVar("Kind", bound=Routes)


@configclass
class Router(abc.ABC):
    """Decides which experts compute a token. Tokens that `context` marks as padding must not affect the result.

    To add a router, derive a configclass from it. The three checks raise ValueError for what the router does not
    support; by default everything is supported.
    """

    routes: ClassVar[type] = Choice
    """Type of its routes: `Choice`, `Picks` or `SoftAssignment`."""
    scored: ClassVar[bool] = True
    """Whether it scores experts for tokens, so that `Routed` has logits and scores."""

    @abc.abstractmethod
    def build(self, width: int, experts: int, precision: Precision, name: str) -> nn.Module:
        """A module that is called with (x [B, T, D], context) and returns `Routed`."""

    @abc.abstractmethod
    def parameters(self, width: int, experts: int) -> int:
        """Number of parameters."""

    @abc.abstractmethod
    def matrix_flops(self, width: int, experts: int) -> int:
        """Forward FLOPs per token."""

    @abc.abstractmethod
    def choices(self, experts: int) -> float:
        """Mean number of experts per token."""

    @property
    def causal(self) -> bool:
        """Whether the routes of a token are independent of later tokens."""
        return True

    @property
    def has_bias(self) -> bool:
        """Whether it has a parameter `bias` [E] for the choice of experts, which a `BiasUpdate` changes."""
        return False

    def check(self, experts: int) -> None:
        """Raises ValueError if the router does not support this number of experts."""

    def check_rows(self, length: int, parts: int) -> None:
        """Raises ValueError if the router does not support sequences of `length` tokens in `parts` shards, one per
        device."""

    def check_vocabulary(self, size: int) -> None:
        """Raises ValueError if the router does not support a vocabulary of this size."""


@flax.struct.dataclass
class Routed:
    """Result of a router.

    Attributes:
      routes: assignment of tokens and experts.
      logits_BTE: float32 router logits; None for a router without scores.
      scores_BTE: float32 non-negative scores of each expert for each token, which balance losses read; None for a
        router without scores.
    """

    routes: Routes
    logits_BTE: jax.Array | None = None
    scores_BTE: jax.Array | None = None

    @property
    def choice(self) -> Choice:
        """`routes` of a token-choice router. Raises ValueError for another router."""
        return served(self.routes, Choice)

    @property
    def logits(self) -> jax.Array:
        """`logits_BTE`. Raises ValueError if the router has none."""
        return given(self.logits_BTE, "the router has no logits, since it does not read tokens: use another router")

    @property
    def scores(self) -> jax.Array:
        """`scores_BTE`. Raises ValueError if the router has none."""
        return given(self.scores_BTE, "the router has no scores, since it does not read tokens: use another router")


def served(routes: Routes, *kinds: type[Kind]) -> Kind:
    """`routes`, which must be of one of these types. Raises ValueError otherwise; configs reject such cases earlier."""
    if not isinstance(routes, kinds):
        raise ValueError(
            f"routes are a {type(routes).__name__}: they must be a {' or a '.join(k.__name__ for k in kinds)}"
        )
    return routes


def load(routes: Routes, experts: int, real_BT: jax.Array) -> jax.Array:
    """The experts that each token chose, or that picked it: float32 0 or 1 [B, T, E]. For soft assignments the weights
    of the experts in the token. 0 for padding."""
    if isinstance(routes, SoftAssignment):
        return jnp.sum(routes.combine_BTES, axis=-1) * real_BT[..., None]
    if isinstance(routes, Choice):
        chosen_KBT = jnp.moveaxis((routes.weights_BTK > 0) * real_BT[..., None], -1, 0)
        choices = zip(jnp.moveaxis(routes.experts_BTK, -1, 0), chosen_KBT, strict=True)
        # Terms are added one by one, so that no array [B, T, K, E] is allocated.
        terms = (jax.nn.one_hot(experts_BT, experts) * chosen_BT[..., None] for experts_BT, chosen_BT in choices)
        return functools.reduce(operator.add, terms)
    return spread(routes, (routes.weights_BGEC > 0).astype(jnp.float32), real_BT)


def spread(routes: Picks, values_BGEC: jax.Array, real_BT: jax.Array) -> jax.Array:
    """The value of each pick at its token and expert, [B, T, E]; 0 elsewhere and for padding."""
    batch, groups, experts = routes.places_BGEC.shape[:3]
    b, g, e = jnp.ogrid[:batch, :groups, :experts]
    zeros_BGNE = jnp.zeros((batch, groups, real_BT.shape[1] // groups, experts), values_BGEC.dtype)
    spread_BGNE = zeros_BGNE.at[b[..., None], g[..., None], routes.places_BGEC, e[..., None]].add(values_BGEC)
    return spread_BGNE.reshape(*real_BT.shape, experts) * real_BT[..., None]

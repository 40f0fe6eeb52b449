"""What a router decides of the tokens.

Legend: B batch, T length, E experts, K choices of a token, G groups of a row, N tokens of a group, C tokens that an
expert takes of a group, S slots of an expert.
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
    """The experts that every token chose, the best first.

    Attributes:
      experts_BTK: int32, no expert twice for a token.
      weights_BTK: float32, with which their results are added; 0 for a choice that is none.
      best_BT: float32 above 0, the highest score of the experts chosen, of which normalized weights tell nothing; None
        where the highest weight is it.
    """

    logical_axes: ClassVar = (axes.BATCH, axes.LENGTH)
    """Of the axes along which devices may divide it."""

    experts_BTK: jax.Array
    weights_BTK: jax.Array
    best_BT: jax.Array | None = None


@flax.struct.dataclass
class Picks:
    """The tokens that every expert picked from each group of neighbouring tokens of a row.

    Attributes:
      places_BGEC: int32 places in the group, none twice for an expert.
      weights_BGEC: float32, with which the results are added; 0 for a pick that is none.
    """

    places_BGEC: jax.Array
    weights_BGEC: jax.Array

    @property
    def logical_axes(self) -> tuple[str, ...]:
        """Of the axes along which devices may divide it."""
        return (axes.BATCH, axes.LENGTH) if self.places_BGEC.shape[1] > 1 else (axes.BATCH,)


@flax.struct.dataclass
class SoftAssignment:
    """What the slots of the experts are mixed of, and tokens of the results for the slots.

    Attributes:
      dispatch_BTES: float32 share of each token in each slot, 0 of one that is not real.
      combine_BTES: float32 share of each slot's result in that of each token, 0 for one that is not real.
    """

    logical_axes: ClassVar = (axes.BATCH,)
    """Of the axes along which devices may divide it."""

    dispatch_BTES: jax.Array
    combine_BTES: jax.Array


Routes = Choice | Picks | SoftAssignment
Kind = TypeVar("Kind", bound=Routes)


@configclass
class Router(abc.ABC):
    """What decides which experts compute a token. What `context` says is padding must change nothing.

    Derive a configclass from it to use a router of your own. The three checks raise ValueError for what the router does
    not support; unless they are overridden, all is supported.
    """

    routes: ClassVar[type] = Choice
    """What it gives: `Choice`, `Picks` or `SoftAssignment`."""
    scored: ClassVar[bool] = True
    """Whether it scores experts for tokens: `Routed` has logits and scores."""

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
        """Mean number of experts that a token visits."""

    @property
    def causal(self) -> bool:
        """Whether no token's route depends on a later token."""
        return True

    @property
    def has_bias(self) -> bool:
        """Whether it has a parameter `bias` [E] on the choice of experts that a `BiasUpdate` moves."""
        return False

    def check(self, experts: int) -> None:
        """It can choose from this number of experts."""

    def check_rows(self, length: int, parts: int) -> None:
        """It can route sequences of `length` tokens that lie in `parts` shards on as many devices."""

    def check_vocabulary(self, size: int) -> None:
        """It can route a vocabulary of this size."""


@flax.struct.dataclass
class Routed:
    """Result of a router.

    Attributes:
      routes: who goes where.
      logits_BTE: float32, what the router made of each token; None for one that does not look at it.
      scores_BTE: float32, how well each expert suits each token, not negative: what balance losses even out; None for
        a router that does not look at tokens.
    """

    routes: Routes
    logits_BTE: jax.Array | None = None
    scores_BTE: jax.Array | None = None

    @property
    def choice(self) -> Choice:
        """`routes` where tokens choose. ValueError where they do not."""
        return served(self.routes, Choice)

    @property
    def logits(self) -> jax.Array:
        """`logits_BTE` of a router that has them. ValueError for another."""
        return given(self.logits_BTE, "the router has no logits: it does not look at tokens")

    @property
    def scores(self) -> jax.Array:
        """`scores_BTE` of a router that has them. ValueError for another."""
        return given(self.scores_BTE, "the router has no scores: it does not look at tokens")


def served(routes: Routes, *kinds: type[Kind]) -> Kind:
    """`routes`, of one of these kinds. ValueError for another one, which configs refuse before."""
    if not isinstance(routes, kinds):
        raise ValueError(
            f"routes are a {type(routes).__name__}: they must be a {' or a '.join(k.__name__ for k in kinds)}"
        )
    return routes


def load(routes: Routes, experts: int, real_BT: jax.Array) -> jax.Array:
    """Which experts each token chose, or was picked by: float32 0 or 1 [B, T, E], of a mixture their shares in it; none
    for a token that is not real."""
    if isinstance(routes, SoftAssignment):
        return jnp.sum(routes.combine_BTES, axis=-1) * real_BT[..., None]
    if isinstance(routes, Choice):
        chosen_KBT = jnp.moveaxis((routes.weights_BTK > 0) * real_BT[..., None], -1, 0)
        choices = zip(jnp.moveaxis(routes.experts_BTK, -1, 0), chosen_KBT, strict=True)
        # One term after the other, so that no [B, T, K, E] is made of them.
        terms = (jax.nn.one_hot(experts_BT, experts) * chosen_BT[..., None] for experts_BT, chosen_BT in choices)
        return functools.reduce(operator.add, terms)
    return spread(routes, (routes.weights_BGEC > 0).astype(jnp.float32), real_BT)


def spread(routes: Picks, values_BGEC: jax.Array, real_BT: jax.Array) -> jax.Array:
    """The value of each pick at its token and expert, 0 elsewhere and for a token that is not real: [B, T, E]."""
    batch, groups, experts = routes.places_BGEC.shape[:3]
    b, g, e = jnp.ogrid[:batch, :groups, :experts]
    zeros_BGNE = jnp.zeros((batch, groups, real_BT.shape[1] // groups, experts), values_BGEC.dtype)
    spread_BGNE = zeros_BGNE.at[b[..., None], g[..., None], routes.places_BGEC, e[..., None]].add(values_BGEC)
    return spread_BGNE.reshape(*real_BT.shape, experts) * real_BT[..., None]

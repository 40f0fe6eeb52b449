"""Experts of limited capacity: what chooses an expert that is full is dropped.

Legend: B batch, T length, D model width, E experts, K choices of a token, G groups of all rows, N tokens of a group,
P choices of a group, C places of an expert in a group.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.checks import check, check_one_of, check_positive, check_positive_if_given
from llm_jax.core.configclass import configclass
from llm_jax.layers.ffn.dispatch import Dispatch
from llm_jax.layers.ffn.dispatch.expert_rows import ordered
from llm_jax.layers.ffn.dispatch.seats import ByIndex, Seats, SeatsConfig
from llm_jax.layers.ffn.experts import Local
from llm_jax.layers.ffn.routing import Choice, Router, Routes, served

Priority = Literal["position", "score"]


class LimitedCapacity(Dispatch):
    """Experts with a number of places for each group of tokens.

    First choices come before second ones: whether a token's second choice is served may depend on later tokens. A token
    whose choices are all dropped gets 0.
    """

    priority: Priority
    group: int | None
    moves: SeatsConfig
    allow_future: bool

    serves = (Choice,)

    def __post_init__(self):
        check_positive_if_given(group=self.group)
        check_one_of("priority", self.priority, ("position", "score"))

    @property
    def causal(self) -> bool:
        return self.priority == "position" or self.allow_future

    def check(self, router: Router) -> None:
        """
        Raises:
          ValueError: where scores are to come first and there are none.
        """
        check(
            self.priority == "position" or router.scored,
            f"dispatch.priority is {self.priority!r} and router {type(router).__name__} scores nothing, so that all "
            "tokens are equal: set dispatch.priority to 'position'",
        )

    def check_rows(self, length: int, parts: int) -> None:
        """
        Raises:
          ValueError: for rows of so many tokens in so many parts on as many devices, if groups lie on several of them.
        """
        held = length // parts
        check(
            parts == 1 or (self.group is not None and held % self.group == 0),
            f"group is {self.group or 'a row'} and a device holds {held} of the {length} tokens of a row: it must "
            f"hold whole groups; set dispatch.group to a divisor of {held}, or do not divide rows",
        )

    def places(self, tokens: int, choices: int, experts: int) -> int:
        """Places of each expert for a group of this number of real tokens."""
        raise NotImplementedError

    def run(self, experts: Local, x_BTD: jax.Array, routes: Routes, real_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See dispatch.__init__."""
        choice = served(routes, Choice)
        batch, length = real_BT.shape
        group = min(self.group or length, length)
        short = -length % group

        def grouped(x: jax.Array) -> jax.Array:
            x = jnp.pad(x, ((0, 0), (0, short), *((0, 0),) * (x.ndim - 2)))
            return x.reshape(-1, group, *x.shape[2:])

        def whole(x: jax.Array) -> jax.Array:
            return x.reshape(batch, length + short, *x.shape[2:])[:, :length]

        weights_GNK = grouped(choice.weights_BTK * real_BT[..., None])
        chosen_GNK = jnp.where(weights_GNK > 0, grouped(choice.experts_BTK), experts.count)
        choices = chosen_GNK.shape[-1]
        by_tokens = np.array([self.places(tokens, choices, experts.count) for tokens in range(group + 1)], np.int32)
        places_G = jnp.asarray(by_tokens)[jnp.sum(grouped(real_BT), axis=1, dtype=jnp.int32)]
        best_BT = jnp.max(choice.weights_BTK, axis=-1) if choice.best_BT is None else choice.best_BT
        first_GN = self._first(grouped(best_BT * real_BT))
        seats = _seats(chosen_GNK, first_GN, experts.count, places_G, int(by_tokens.max()))
        y_GND = self.moves.serve(experts, grouped(x_BTD), weights_GNK, seats)
        return whole(y_GND), whole(jnp.sum(seats.served_GNK, axis=-1, dtype=jnp.float32))

    def _first(self, best_GN: jax.Array) -> jax.Array:
        """Tokens in the order in which they are served, int32 [G, N], of their best scores."""
        if self.priority == "score":
            return jnp.argsort(-best_GN, stable=True)
        return jnp.broadcast_to(jnp.arange(best_GN.shape[1]), best_GN.shape)


@configclass
class Capacity(LimitedCapacity):
    """Each expert takes ceil(factor * choices of a group / experts) of a group of tokens, at least one and at most all
    (Fedus et al. 2021, arXiv:2101.03961, eq. 3; Lepikhin et al. 2020, arXiv:2006.16668, section 2.2). Padding counts
    for nothing: the capacity is that of the group's real tokens."""

    factor: float = 1.25
    """Places over those that an even load would take."""
    priority: Priority = "position"
    """Who comes first among equal choices: the earlier token, or that whose best expert has the higher score, before
    weights are normalized (batch-prioritized routing; Riquelme et al. 2021, arXiv:2106.05974, section 4.1), so that
    even first choices depend on later tokens."""
    group: int | None = None
    """Neighbouring tokens of a row that share the places; None: all of the row."""
    moves: SeatsConfig = ByIndex()
    """How tokens come to their places."""
    allow_future: bool = False
    """Whether a causal model may have the priority "score"."""

    def __post_init__(self):
        # A factor above 0 gives every expert a place, so that no capacity drops everything.
        check(
            0 < self.factor < math.inf,
            f"dispatch.factor is {self.factor}: it must be greater than 0 and finite; 1.25 is common, and "
            "Dropless() has no limit",
        )
        super().__post_init__()

    def places(self, tokens: int, choices: int, experts: int) -> int:
        """Places of each expert for a group of this number of real tokens."""
        # A product that is a whole number but for rounding is that number.
        return min(tokens, math.ceil(self.factor * choices * tokens / experts - 1e-9))


@configclass
class FixedCapacity(LimitedCapacity):
    """Each expert takes as many tokens of every group, however many it has: `expert_capacity` of transformers' Switch.
    Its other fields are those of `Capacity`."""

    limit: int = 64
    """Places of each expert."""
    priority: Priority = "position"
    group: int | None = None
    moves: SeatsConfig = ByIndex()
    allow_future: bool = False

    def __post_init__(self):
        check_positive(limit=self.limit)
        super().__post_init__()

    def places(self, tokens: int, choices: int, experts: int) -> int:
        """Places of each expert for a group of this number of real tokens."""
        return min(tokens, self.limit)


def _seats(chosen_GNK: jax.Array, first_GN: jax.Array, count: int, places_G: jax.Array, most: int) -> Seats:
    """Gives the places of experts away.

    Args:
      chosen_GNK: experts from 0 to `count`, which stands for none.
      first_GN: tokens in the order in which they are served.
      places_G: int32, places of each expert in each group.
      most: upper bound of `places_G`, the size of the buffer.
    """
    groups, tokens, choices = chosen_GNK.shape
    queue_GNK = jnp.take_along_axis(chosen_GNK, first_GN[..., None], axis=1)
    order_GP, place_GP, sizes_GE = ordered(queue_GNK.swapaxes(1, 2).reshape(groups, -1), count)
    starts_GE = jnp.cumsum(sizes_GE, axis=1) - sizes_GE
    # From the places of experts to choices...
    entry_GEC = jnp.minimum(starts_GE[..., None] + jnp.arange(most), tokens * choices - 1)
    queued_GEC = jnp.take_along_axis(order_GP[:, None], entry_GEC, axis=2)
    token_GEC = jnp.take_along_axis(first_GN[:, None], queued_GEC % tokens, axis=2)
    used_GEC = jnp.arange(most) < jnp.minimum(sizes_GE, places_G[:, None])[..., None]
    # ... and back.
    served_in_GN = jnp.argsort(first_GN, axis=1)
    entry_GNK = place_GP.reshape(groups, choices, tokens).swapaxes(1, 2)
    entry_GNK = jnp.take_along_axis(entry_GNK, served_in_GN[..., None], axis=1)
    real_GNK = jnp.minimum(chosen_GNK, count - 1)
    place_GNK = entry_GNK - jnp.take_along_axis(starts_GE[:, None], real_GNK, axis=2)
    return Seats(
        choice_GEC=token_GEC * choices + queued_GEC // tokens,
        used_GEC=used_GEC,
        expert_GNK=real_GNK,
        place_GNK=place_GNK,
        served_GNK=(chosen_GNK < count) & (place_GNK < places_G[:, None, None]),
    )

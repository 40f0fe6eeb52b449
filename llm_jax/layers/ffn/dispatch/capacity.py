"""Dispatch with limited expert capacity: choices of a full expert are dropped.

Legend: B batch, T length, D model width, E experts, K choices of a token, G groups of all sequences, N tokens of a
group, P choices of a group, C capacity of an expert in a group.
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
    """Experts with a capacity for each group of tokens.

    First choices are served before second ones, so whether a token's second choice is served may depend on later
    tokens. A token whose choices are all dropped gets 0.
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
          ValueError: if `priority` is "score" and the router has no scores.
        """
        check(
            self.priority == "position" or router.scored,
            f"dispatch.priority is {self.priority!r} and router {type(router).__name__} has no scores: set "
            "dispatch.priority to 'position'",
        )

    def check_rows(self, length: int, parts: int) -> None:
        """
        Raises:
          ValueError: if a group of a sequence of `length` tokens in `parts` shards lies on several devices.
        """
        held = length // parts
        check(
            parts == 1 or (self.group is not None and held % self.group == 0),
            f"group is {self.group or 'a sequence'} and a device holds {held} of the {length} tokens of a sequence: "
            f"it must hold whole groups; set dispatch.group to a divisor of {held}, or do not shard sequences",
        )

    def expert_capacity(self, tokens: int, choices: int, experts: int) -> int:
        """Expert capacity for a group of `tokens` real tokens."""
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

        # A choice of weight 0 uses no capacity: that of a padding token, or one that the router left out.
        weights_GNK = grouped(choice.weights_BTK * real_BT[..., None])
        chosen_GNK = jnp.where(weights_GNK > 0, grouped(choice.experts_BTK), experts.count)
        choices = chosen_GNK.shape[-1]
        # `expert_capacity` is a Python function and the number of real tokens is traced, so its values for all numbers
        # are a table.
        by_tokens = np.array(
            [self.expert_capacity(tokens, choices, experts.count) for tokens in range(group + 1)], np.int32
        )
        capacity_G = jnp.asarray(by_tokens)[jnp.sum(grouped(real_BT), axis=1, dtype=jnp.int32)]
        best_BT = jnp.max(choice.weights_BTK, axis=-1) if choice.best_BT is None else choice.best_BT
        first_GN = self._first(grouped(best_BT * real_BT))
        seats = _seats(chosen_GNK, first_GN, experts.count, capacity_G, int(by_tokens.max()))
        y_GND = self.moves.serve(experts, grouped(x_BTD), weights_GNK, seats)
        return whole(y_GND), whole(jnp.sum(seats.served_GNK, axis=-1, dtype=jnp.float32))

    def _first(self, best_GN: jax.Array) -> jax.Array:
        """Tokens in the order in which they are served, int32 [G, N], from their best scores."""
        if self.priority == "score":
            return jnp.argsort(-best_GN, stable=True)
        return jnp.broadcast_to(jnp.arange(best_GN.shape[1]), best_GN.shape)


@configclass
class Capacity(LimitedCapacity):
    """Expert capacity ceil(factor * choices of a group / experts) per group of tokens, at least one and at most all
    (Fedus et al. 2021, arXiv:2101.03961, eq. 3; Lepikhin et al. 2020, arXiv:2006.16668, section 2.2). Only the real
    tokens of the group count, not padding."""

    factor: float = 1.25
    """Capacity factor: capacity over the load of an expert under uniform routing."""
    priority: Priority = "position"
    """Which of equal choices is served first: that of the earlier token ("position"), or that of the token whose best
    expert has the higher score before normalisation ("score": batch-prioritized routing; Riquelme et al. 2021,
    arXiv:2106.05974, section 4.1). With "score" even first choices depend on later tokens."""
    group: int | None = None
    """Number of consecutive tokens of a sequence that share the capacity; None: the whole sequence."""
    moves: SeatsConfig = ByIndex()
    """How tokens are moved to the capacity buffer."""
    allow_future: bool = False
    """Whether a causal model may use the priority "score"."""

    def __post_init__(self):
        # With a factor above 0 every expert has a capacity of at least one, so no capacity drops everything.
        check(
            0 < self.factor < math.inf,
            f"dispatch.factor is {self.factor}: it must be finite and greater than 0, such as 1.25; for unlimited "
            "capacity use Dropless()",
        )
        super().__post_init__()

    def expert_capacity(self, tokens: int, choices: int, experts: int) -> int:
        """Expert capacity for a group of `tokens` real tokens."""
        # The subtraction keeps rounding errors from raising a whole number to the next one.
        return min(tokens, math.ceil(self.factor * choices * tokens / experts - 1e-9))


@configclass
class FixedCapacity(LimitedCapacity):
    """A fixed expert capacity per group, whatever its number of tokens: `expert_capacity` of transformers' Switch. The
    other fields are those of `Capacity`."""

    limit: int = 64
    """Expert capacity."""
    priority: Priority = "position"
    group: int | None = None
    moves: SeatsConfig = ByIndex()
    allow_future: bool = False

    def __post_init__(self):
        check_positive(limit=self.limit)
        super().__post_init__()

    def expert_capacity(self, tokens: int, choices: int, experts: int) -> int:
        """Expert capacity for a group of `tokens` real tokens."""
        return min(tokens, self.limit)


def _seats(chosen_GNK: jax.Array, first_GN: jax.Array, count: int, capacity_G: jax.Array, most: int) -> Seats:
    """Assigns choices to the capacity buffers of the experts.

    Args:
      chosen_GNK: experts from 0 to `count`, where `count` means none.
      first_GN: tokens in the order in which they are served.
      capacity_G: int32, expert capacity in each group.
      most: upper bound of `capacity_G`, the size of the buffer.
    """
    groups, tokens, choices = chosen_GNK.shape
    # The queue has the first choices of all tokens, then their second choices, and so on: [K, N], flattened. A stable
    # sort by expert keeps this order within each expert, so a choice's place there is its index in the buffer.
    queue_GNK = jnp.take_along_axis(chosen_GNK, first_GN[..., None], axis=1)
    order_GP, place_GP, sizes_GE = ordered(queue_GNK.swapaxes(1, 2).reshape(groups, -1), count)
    # GShard finds these places by a cumulative sum over [tokens, experts]; the sort needs no array of that size.
    starts_GE = jnp.cumsum(sizes_GE, axis=1) - sizes_GE
    # From buffer indices to choices ...
    entry_GEC = jnp.minimum(starts_GE[..., None] + jnp.arange(most), tokens * choices - 1)
    queued_GEC = jnp.take_along_axis(order_GP[:, None], entry_GEC, axis=2)
    token_GEC = jnp.take_along_axis(first_GN[:, None], queued_GEC % tokens, axis=2)
    used_GEC = jnp.arange(most) < jnp.minimum(sizes_GE, capacity_G[:, None])[..., None]
    # ... and from choices to buffer indices.
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
        served_GNK=(chosen_GNK < count) & (place_GNK < capacity_G[:, None, None]),
    )

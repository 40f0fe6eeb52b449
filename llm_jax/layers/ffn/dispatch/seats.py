"""Capacity buffers of experts, and how tokens are moved to them.

Legend: G groups, N tokens of a group, K choices of a token, E experts, C capacity of an expert in a group, D model
width, S buffer entries of all experts, R rows.
"""

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.core.configclass import configclass
from llm_jax.layers.ffn.dispatch.expert_rows import ExpertRows
from llm_jax.layers.ffn.experts import Local


@flax.struct.dataclass
class Seats:
    """The choice in each buffer entry, and the buffer entry of each choice.

    Attributes:
      choice_GEC: int32 from 0 to N K - 1, index of the choice, those of a token consecutive; arbitrary if unused.
      used_GEC: bool, whether the buffer entry is used.
      expert_GNK: int32, the expert of a choice.
      place_GNK: int32, its index in the expert's buffer; arbitrary for a choice that is not served.
      served_GNK: bool, whether the choice is served.
    """

    choice_GEC: jax.Array
    used_GEC: jax.Array
    expert_GNK: jax.Array
    place_GNK: jax.Array
    served_GNK: jax.Array


@configclass
class ByIndex:
    """Tokens are moved by gathers."""

    def serve(self, experts: Local, x_GND: jax.Array, weights_GNK: jax.Array, seats: Seats) -> jax.Array:
        """Sum of weight * result over the served choices of each token, [G, N, D]."""
        (groups, tokens, choices), (_, count, places) = weights_GNK.shape, seats.choice_GEC.shape
        group_G11 = jnp.arange(groups)[:, None, None]
        choice_GEC = group_G11 * tokens * choices + seats.choice_GEC
        # Rows are [E, G, C], flattened: the experts come first, because the buffers are sent to the devices of their
        # experts.
        row_GNK = (seats.expert_GNK * groups + group_G11) * places + jnp.where(seats.served_GNK, seats.place_GNK, 0)
        by_expert = lambda x_GEC: x_GEC.swapaxes(0, 1).reshape(-1)  # noqa: E731
        by_token = lambda x_GNK: x_GNK.reshape(-1, choices)  # noqa: E731
        rows = ExpertRows(
            by_expert(choice_GEC), by_expert(seats.used_GEC), by_token(row_GNK), by_token(seats.served_GNK)
        )
        x_ERD = rows.tokens(x_GND.reshape(-1, x_GND.shape[-1])).reshape(count, groups * places, -1)
        y_ERD = experts.batched(x_ERD, rows.weights(by_token(weights_GNK)).reshape(x_ERD.shape[:2]))
        return rows.sums(y_ERD.reshape(-1, x_ERD.shape[-1])).reshape(x_GND.shape)


@configclass
class ByProducts:
    """Tokens are moved by products with one-hot matrices, tokens by buffer entries of a group (Lepikhin et al. 2020,
    arXiv:2006.16668, algorithm 1). Nothing is gathered, but work and memory grow with the square of the group size."""

    def serve(self, experts: Local, x_GND: jax.Array, weights_GNK: jax.Array, seats: Seats) -> jax.Array:
        """Sum of weight * result over the served choices of each token, [G, N, D]."""
        groups, count, places = seats.choice_GEC.shape
        seat_GNK = jnp.where(seats.served_GNK, seats.expert_GNK * places + seats.place_GNK, -1)
        sits_GNKS = jax.nn.one_hot(seat_GNK, count * places, dtype=x_GND.dtype)
        # A token is in a buffer entry at most once, so the sum over its choices is 0 or 1.
        x_GSD = jnp.einsum("GNS,GND->GSD", sits_GNKS.sum(2), x_GND)
        x_EGCD = x_GSD.reshape(groups, count, places, -1).swapaxes(0, 1)
        y_ERD = experts.batched(x_EGCD.reshape(count, groups * places, -1))
        y_GSD = y_ERD.reshape(x_EGCD.shape).swapaxes(0, 1).reshape(x_GSD.shape)
        weights_GNS = jnp.einsum("GNKS,GNK->GNS", sits_GNKS, weights_GNK.astype(x_GND.dtype))
        return jnp.einsum("GNS,GSD->GND", weights_GNS, y_GSD)


SeatsConfig = ByIndex | ByProducts

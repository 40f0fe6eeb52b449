"""Permutation of tokens into rows sorted by expert, and of results back.

Both directions are gathers, and each is the gradient of the other, because the indices of both directions are known.
Nothing is scattered.

Legend: R tokens, K choices of a token, P choices of all tokens, S rows of all experts, D model width, E experts,
G groups of tokens that are sorted separately.
"""

import functools
import operator

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class ExpertRows:
    """The choice of each row, and the row of each choice.

    Attributes:
      choice_S: int32 from 0 to R K - 1, index of the choice, those of a token consecutive; arbitrary for an unused row.
      used_S: bool, whether the row serves a choice.
      row_RK: int32, the row of a choice; arbitrary for a choice that is not served.
      served_RK: bool, whether a choice is served.
    """

    choice_S: jax.Array
    used_S: jax.Array
    row_RK: jax.Array
    served_RK: jax.Array

    def tokens(self, x_RD: jax.Array) -> jax.Array:
        """The token of each row, [S, D]; 0 for an unused row."""
        return _taken(x_RD, self)

    def weights(self, weights_RK: jax.Array) -> jax.Array:
        """The weight of each row's choice [S]; 0 for an unused row."""
        choices = ExpertRows(self.choice_S, self.used_S, self.row_RK.reshape(-1, 1), self.served_RK.reshape(-1, 1))
        return _taken(weights_RK.reshape(-1, 1), choices)[:, 0]

    def sums(self, y_SD: jax.Array) -> jax.Array:
        """Sum, for each token, of the rows of its served choices, [R, D] in the dtype of the rows."""
        return _summed(y_SD, self)


@jax.custom_vjp
def _taken(x_RD: jax.Array, rows: ExpertRows) -> jax.Array:
    token_S = rows.choice_S // rows.row_RK.shape[1]
    return jnp.where(rows.used_S[:, None], _picked(x_RD, token_S), 0)


@jax.custom_vjp
def _summed(y_SD: jax.Array, rows: ExpertRows) -> jax.Array:
    # Terms are added one by one, so that no array [R, K, D] is allocated.
    choices = zip(rows.served_RK.T[..., None], rows.row_RK.T, strict=True)
    terms = (jnp.where(served_R1, _picked(y_SD, row_R).astype(jnp.float32), 0) for served_R1, row_R in choices)
    return functools.reduce(operator.add, terms).astype(y_SD.dtype)


_taken.defvjp(lambda x_RD, rows: (_taken(x_RD, rows), rows), lambda rows, dx_SD: (_summed(dx_SD, rows), None))
_summed.defvjp(lambda y_SD, rows: (_summed(y_SD, rows), rows), lambda rows, dy_RD: (_taken(dy_RD, rows), None))


def _picked(x: jax.Array, index: jax.Array) -> jax.Array:
    # The indices are valid by construction; the default mode would compare them with the bounds and fill.
    return x.at[index].get(mode="promise_in_bounds")


def ordered(experts_GP: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Stable sort of the choices of each group by expert.

    Args:
      experts_GP: int32 from 0 to `count`, where `count` means none and comes last.

    Returns:
      Sorted choices [G, P], the index of each choice in that order [G, P], number of choices of each expert [G, E].
    """
    groups, choices = experts_GP.shape
    places_GP = jnp.broadcast_to(jnp.arange(choices), experts_GP.shape)
    if (count + 1) * choices < 2**31:
        # Sorting one number instead of a pair is three times as fast on a CPU.
        sorted_GP, order_GP = jnp.divmod(jnp.sort(experts_GP * choices + places_GP), choices)
    else:
        order_GP = jnp.argsort(experts_GP, stable=True)
        sorted_GP = jnp.take_along_axis(experts_GP, order_GP, axis=1)
    group_G1 = jnp.arange(groups)[:, None]
    place_GP = places_GP.at[group_G1, order_GP].set(places_GP, unique_indices=True, mode="promise_in_bounds")
    # Index one past each expert's last choice. Comparing every choice with every expert would take more memory.
    ends_GE = jax.vmap(lambda sorted_P: jnp.searchsorted(sorted_P, jnp.arange(count), side="right"))(sorted_GP)
    sizes_GE = jnp.diff(ends_GE, axis=1, prepend=0).astype(jnp.int32)
    return order_GP, place_GP, sizes_GE

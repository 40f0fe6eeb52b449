"""Tokens in the order of their experts: rows taken from them, and results brought back.

Both ways are gathers, and so are their gradients: each side knows its place on the other, and nothing is scattered.

Legend: R tokens, K choices of a token, S rows of all experts, D model width.
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Rows:
    """Which choice each row serves, and by which row each choice is served.

    Attributes:
      choice_S: int32 from 0 to R K - 1, the choices of a token one after the other; any for a row that serves none.
      used_S: bool, whether the row serves a choice.
      row_RK: int32, the row of a choice; any for one that is not served.
      served_RK: bool, whether a choice is served.
    """

    choice_S: jax.Array
    used_S: jax.Array
    row_RK: jax.Array
    served_RK: jax.Array

    @property
    def token_S(self) -> jax.Array:
        """The token of each row."""
        return self.choice_S // self.row_RK.shape[1]


@jax.custom_vjp
def taken(x_RD: jax.Array, rows: Rows) -> jax.Array:
    """The token of each row, [S, D]; of one that serves no choice any token, through which no gradient flows."""
    return _picked(x_RD, rows.token_S)


def _taken_backward(rows: Rows, dx_SD: jax.Array):
    return _summed(dx_SD, rows.served_RK.astype(jnp.float32), rows), None


taken.defvjp(lambda x_RD, rows: (taken(x_RD, rows), rows), _taken_backward)


@jax.custom_vjp
def combined(y_SD: jax.Array, weights_RK: jax.Array, rows: Rows) -> jax.Array:
    """Sum over the choices of each token that are served of weight * result, [R, D] in the type of the results."""
    return _summed(y_SD, jnp.where(rows.served_RK, weights_RK, 0), rows)


def _combined_backward(saved: tuple[jax.Array, jax.Array, Rows], dy_RD: jax.Array):
    y_SD, weights_RK, rows = saved
    dy_SD = _picked(dy_RD, rows.token_S).astype(jnp.float32)
    weights_S = jnp.where(rows.used_S, _picked(weights_RK.reshape(-1), rows.choice_S), 0)
    dweights_RK = _picked(jnp.sum(dy_SD * y_SD, axis=-1), rows.row_RK)
    dweights_RK = jnp.where(rows.served_RK, dweights_RK, 0).astype(weights_RK.dtype)
    return (dy_SD * weights_S[:, None]).astype(y_SD.dtype), dweights_RK, None


def _combined_forward(y_SD, weights_RK, rows):
    return combined(y_SD, weights_RK, rows), (y_SD, weights_RK, rows)


combined.defvjp(_combined_forward, _combined_backward)


def _summed(y_SD: jax.Array, weights_RK: jax.Array, rows: Rows) -> jax.Array:
    # One term after the other, so that no [R, K, D] is made of them.
    terms = (
        weights_RK[:, k, None] * _picked(y_SD, rows.row_RK[:, k]).astype(jnp.float32)
        for k in range(weights_RK.shape[1])
    )
    return sum(terms).astype(y_SD.dtype)


def _picked(x: jax.Array, index: jax.Array) -> jax.Array:
    return x.at[index].get(mode="promise_in_bounds")


def ordered(experts_GP: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sorts the entries of each group by expert, those of one expert in the order in which they came.

    Args:
      experts_GP: int32 from 0 to `count`, which stands for none and comes last.

    Returns:
      Entries in order [G, P], the place of each entry in that order [G, P], entries of each expert [G, E].
    """
    groups, entries = experts_GP.shape
    places_GP = jnp.broadcast_to(jnp.arange(entries), experts_GP.shape)
    if (count + 1) * entries < 2**31:
        # One number to sort instead of two: three times as fast on a CPU.
        order_GP = jnp.sort(experts_GP * entries + places_GP) % entries
    else:
        order_GP = jnp.argsort(experts_GP, stable=True)
    group_G1 = jnp.arange(groups)[:, None]
    zeros_GP = jnp.zeros_like(order_GP)
    place_GP = zeros_GP.at[group_G1, order_GP].set(places_GP, unique_indices=True, mode="promise_in_bounds")
    sizes_GE = jnp.sum(experts_GP[..., None] == jnp.arange(count), axis=1, dtype=jnp.int32)
    return order_GP, place_GP, sizes_GE

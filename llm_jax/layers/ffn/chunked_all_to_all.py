"""Chunked all-to-all: token rows are sent to the devices of their experts, computed there and returned, without drops.

The number of rows that a device receives depends on the routes: with an even load as many as it sends, at worst the
rows of all devices. A buffer for the worst case would be mostly empty, yet computed. Here the rows that a device
receives are divided into windows of one size. All devices iterate over as many windows as the busiest one has. Memory
is that of one window, work that of the actual rows. While a window is computed, the next one is received and the
results of the previous one are returned. The backward pass has the same structure and saves only the inputs.

All devices know how many rows each one sends to each expert, and so the index of every row in the windows of its
device. Rows are sorted by expert, and within an expert by sending device.

Legend: P rows that a device sends, M devices over which experts are sharded, E all experts, L experts of one device,
R rows of a window, D model width.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from llm_jax.sharding.device_group import DeviceGroup

Compute = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]
"""(weights of L experts, rows sorted by expert [R, D], weights of the rows [R], rows of each expert [L]) -> results
[R, D]. Results of unused rows must be 0, whatever those rows contain."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def run(
    compute: Compute,
    line: DeviceGroup,
    size: int,
    weights: Any,
    rows_PD: jax.Array,
    weights_P: jax.Array,
    sizes_E: jax.Array,
) -> jax.Array:
    """Results [P, D] of `compute` for the rows, on the devices of `line` that hold their experts; 0 for unused rows.

    Args:
      size: rows of a window.
      weights: weights of the experts of this device.
      rows_PD: rows sorted by expert.
      weights_P: float32, weights of the rows.
      sizes_E: int32, number of rows for each of all experts.
    """
    return _forward(compute, line, size, weights, rows_PD, weights_P, sizes_E)[0]


def _forward(compute, line, size, weights, rows_PD, weights_P, sizes_E):
    plan, sent = _Plan.of(line, size, sizes_E), (rows_PD, weights_P)

    def turn(number: jax.Array, carry: Any) -> Any:
        here, before_RD, y_PD = carry
        # Unused rows of the window keep old contents, which is cheaper than clearing them.
        # Receiving, returning and computing are of three different windows and do not depend on one another: they can
        # overlap.
        coming = plan.fetched(sent, here, number + 1)
        y_PD = plan.returned(before_RD, y_PD, number - 1)
        return coming, compute(weights, *here, plan.sizes(number)), y_PD

    first = plan.fetched(sent, plan.empty(sent), 0)
    start = (first, plan.empty(rows_PD), jnp.zeros_like(rows_PD))
    _, last_RD, y_PD = jax.lax.fori_loop(0, plan.count, turn, start)
    return plan.returned(last_RD, y_PD, plan.count - 1), (weights, rows_PD, weights_P, sizes_E)


def _backward(compute, line, size, saved, dy_PD):
    weights, rows_PD, weights_P, sizes_E = saved
    plan, sent = _Plan.of(line, size, sizes_E), (rows_PD, weights_P, dy_PD)

    def turn(number: jax.Array, carry: Any) -> Any:
        here, before, gradients, dweights = carry
        coming = plan.fetched(sent, here, number + 1)
        gradients = plan.returned(before, gradients, number - 1)
        rows_RD, weights_R, dy_RD = here
        # Only the inputs were saved, so `vjp` computes the window's forward pass again.
        product = lambda *operands: compute(*operands, plan.sizes(number))  # noqa: E731
        pullback = jax.vjp(product, weights, rows_RD, weights_R)[1]
        added, drows_RD, dweights_R = pullback(dy_RD)
        dweights = jax.tree.map(lambda total, part: total + part, dweights, added)
        return coming, (drows_RD, dweights_R), gradients, dweights

    first = plan.fetched(sent, plan.empty(sent), 0)
    # float32, because the gradients of the weights are summed over windows.
    totals = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), weights)
    start = (first, plan.empty(sent[:2]), jax.tree.map(jnp.zeros_like, sent[:2]), totals)
    _, last, gradients, dweights = jax.lax.fori_loop(0, plan.count, turn, start)
    drows_PD, dweights_P = plan.returned(last, gradients, plan.count - 1)
    dweights = jax.tree.map(lambda total, x: total.astype(x.dtype), dweights, weights)
    return dweights, drows_PD, dweights_P, None


run.defvjp(_forward, _backward)


class _Pieces(NamedTuple):
    """The part of the rows from each device to each expert that lies in a window: int32 [M, E]."""

    left: jax.Array
    """Index of its first row on the sending device."""
    came: jax.Array
    """Index of its first row in the window."""
    size: jax.Array


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The indices of all rows on their sending and receiving devices."""

    line: DeviceGroup
    size: int
    """Rows of a window."""
    all: _Pieces
    """The pieces if one window held all rows."""
    count: jax.Array
    """Number of windows of the busiest device."""

    @classmethod
    def of(cls, line: DeviceGroup, size: int, sizes_E: jax.Array) -> Self:
        # On the receiving device rows are ordered by expert, then by sender: `firsts` begins each expert, and `came`
        # adds the rows of earlier senders. `left` is the place among the rows of the sender, which are sorted by
        # expert.
        sizes_ME = line.gathered(sizes_E[None], 0)
        totals_ML = jnp.sum(sizes_ME, axis=0).reshape(line.size, -1)
        firsts_E = (jnp.cumsum(totals_ML, axis=1) - totals_ML).reshape(-1)
        came_ME = firsts_E + jnp.cumsum(sizes_ME, axis=0) - sizes_ME
        left_ME = jnp.cumsum(sizes_ME, axis=1) - sizes_ME
        most = jnp.max(jnp.sum(totals_ML, axis=1))
        return cls(line, size, _Pieces(left_ME, came_ME, sizes_ME), (most + size - 1) // size)

    def sizes(self, number: jax.Array) -> jax.Array:
        """Number of rows of each of this device's experts in its window, [L]."""
        return jnp.sum(self._here(self._pieces(number).size), axis=0)

    def empty(self, sent: Any) -> Any:
        """A window of zeros for each array of a tree [P, X]."""
        return jax.tree.map(lambda x: jnp.zeros((self.size, *x.shape[1:]), x.dtype), sent)

    def fetched(self, sent: Any, into: Any, number: jax.Array | int) -> Any:
        """Window `number` of this device from a tree [P, X], written into `into` [R, X]."""
        pieces, index = self._pieces(number), self.line.index
        tables = (pieces.left[index], pieces.size[index], pieces.came[index], self._here(pieces.size).reshape(-1))
        return jax.tree.map(lambda x, into: self.line.exchanged(x, into, *tables), sent, into)

    def returned(self, made: Any, into: Any, number: jax.Array) -> Any:
        """`into` [P, X] with the results for the rows of this device that were in window `number`."""
        pieces = self._pieces(number)
        tables = [self._here(x).reshape(-1) for x in (pieces.came, pieces.size, pieces.left)]
        tables.append(pieces.size[self.line.index])
        return jax.tree.map(lambda y, into: self.line.exchanged(y, into, *tables), made, into)

    def _pieces(self, number: jax.Array | int) -> _Pieces:
        start = number * self.size
        # The part of each piece that lies between the start and the end of the window; of size 0 for most.
        first_ME = jnp.clip(self.all.came, start, start + self.size)
        end_ME = jnp.clip(self.all.came + self.all.size, start, start + self.size)
        return _Pieces(self.all.left + first_ME - self.all.came, first_ME - start, end_ME - first_ME)

    def _here(self, x_ME: jax.Array) -> jax.Array:
        """The columns of the experts of this device, [M, L]."""
        experts = x_ME.shape[1] // self.line.size
        return jax.lax.dynamic_slice_in_dim(x_ME, self.line.index * experts, experts, axis=1)

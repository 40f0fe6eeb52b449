"""Rows that go to the devices of their experts, are computed there and come back: all of them, however many.

How many rows a device gets depends on their routes: under an even load as many as it sends, at worst those of all
devices. Buffers for the worst would be mostly empty, and computed with. Here what a device gets is cut into windows of
one size, and the devices go through them one after the other, as many as the busiest has: memory is that of a window,
work that of the rows that there are. While one is computed the next one comes in, and the results of the one before go
back. The backward pass goes the same way, and keeps of the forward pass only what it began with.

All devices know how many rows each sends to each expert, and so where every row lies in the windows of its device:
those of its first expert come first, of one expert those that the first device sends.

Legend: P rows that a device sends, M devices among which experts are divided, E experts of all, L of one of them,
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
[R, D]; those of rows that are left over are 0, whatever stands there."""


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
    """What `compute` makes of rows at the devices of `line` that hold their experts, [P, D]; 0 of rows left over.

    Args:
      size: rows of a window.
      weights: of the experts of this device.
      rows_PD: sorted by expert.
      weights_P: float32, of the rows.
      sizes_E: int32, rows for each of all experts.
    """
    return _forward(compute, line, size, weights, rows_PD, weights_P, sizes_E)[0]


def _forward(compute, line, size, weights, rows_PD, weights_P, sizes_E):
    plan, sent = _Plan.of(line, size, sizes_E), (rows_PD, weights_P)

    def turn(number: jax.Array, carry: Any) -> Any:
        here, before_RD, y_PD = carry
        # What is left over of the window holds what stood there before: cheaper than to clear it.
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
        product = lambda *operands: compute(*operands, plan.sizes(number))  # noqa: E731
        pullback = jax.vjp(product, weights, rows_RD, weights_R)[1]
        added, drows_RD, dweights_R = pullback(dy_RD)
        dweights = jax.tree.map(lambda total, part: total + part, dweights, added)
        return coming, (drows_RD, dweights_R), gradients, dweights

    first = plan.fetched(sent, plan.empty(sent), 0)
    totals = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), weights)
    start = (first, plan.empty(sent[:2]), jax.tree.map(jnp.zeros_like, sent[:2]), totals)
    _, last, gradients, dweights = jax.lax.fori_loop(0, plan.count, turn, start)
    drows_PD, dweights_P = plan.returned(last, gradients, plan.count - 1)
    dweights = jax.tree.map(lambda total, x: total.astype(x.dtype), dweights, weights)
    return dweights, drows_PD, dweights_P, None


run.defvjp(_forward, _backward)


class _Pieces(NamedTuple):
    """Of what each device sends to each expert, the piece that is in a window: int32 [M, E]."""

    left: jax.Array
    """Its first row among those of the device that sends."""
    came: jax.Array
    """Its first row in the window."""
    size: jax.Array


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Where all rows lie, as one of the devices sees it."""

    line: DeviceGroup
    size: int
    """Rows of a window."""
    all: _Pieces
    """With one window for all rows."""
    count: jax.Array
    """Windows of the busiest device."""

    @classmethod
    def of(cls, line: DeviceGroup, size: int, sizes_E: jax.Array) -> Self:
        sizes_ME = line.gathered(sizes_E[None], 0)
        totals_ML = jnp.sum(sizes_ME, axis=0).reshape(line.size, -1)
        firsts_E = (jnp.cumsum(totals_ML, axis=1) - totals_ML).reshape(-1)
        came_ME = firsts_E + jnp.cumsum(sizes_ME, axis=0) - sizes_ME
        left_ME = jnp.cumsum(sizes_ME, axis=1) - sizes_ME
        most = jnp.max(jnp.sum(totals_ML, axis=1))
        return cls(line, size, _Pieces(left_ME, came_ME, sizes_ME), (most + size - 1) // size)

    def sizes(self, number: jax.Array) -> jax.Array:
        """Rows of each of this device's experts in its window, [L]."""
        return jnp.sum(self._here(self._pieces(number).size), axis=0)

    def empty(self, sent: Any) -> Any:
        """A window for each array of a tree [P, X]."""
        return jax.tree.map(lambda x: jnp.zeros((self.size, *x.shape[1:]), x.dtype), sent)

    def fetched(self, sent: Any, into: Any, number: jax.Array | int) -> Any:
        """The window of this device of a tree [P, X], written into that of another window [R, X]."""
        pieces, place = self._pieces(number), self.line.place
        tables = (pieces.left[place], pieces.size[place], pieces.came[place], self._here(pieces.size).reshape(-1))
        return jax.tree.map(lambda x, into: self.line.exchanged(x, into, *tables), sent, into)

    def returned(self, made: Any, into: Any, number: jax.Array) -> Any:
        """A tree [P, X] with what the devices made of the rows of this one that were in a window."""
        pieces = self._pieces(number)
        tables = [self._here(x).reshape(-1) for x in (pieces.came, pieces.size, pieces.left)]
        tables.append(pieces.size[self.line.place])
        return jax.tree.map(lambda y, into: self.line.exchanged(y, into, *tables), made, into)

    def _pieces(self, number: jax.Array | int) -> _Pieces:
        start = number * self.size
        first_ME = jnp.clip(self.all.came, start, start + self.size)
        end_ME = jnp.clip(self.all.came + self.all.size, start, start + self.size)
        return _Pieces(self.all.left + first_ME - self.all.came, first_ME - start, end_ME - first_ME)

    def _here(self, x_ME: jax.Array) -> jax.Array:
        """What is said of the experts of this device, [M, L]."""
        experts = x_ME.shape[1] // self.line.size
        return jax.lax.dynamic_slice_in_dim(x_ME, self.line.place * experts, experts, axis=1)

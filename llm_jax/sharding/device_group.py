"""Devices that each hold a part of the same arrays, and what they send to one another."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class DeviceGroup:
    """`size` devices in the order of the parts that they hold, seen from one of them: to be asked inside of a function
    that is `partition.per_device`."""

    axes: tuple[str, ...]
    """Mesh axes along which they lie; none for a device by itself."""
    size: int

    @property
    def place(self) -> jax.Array:
        """Which of them this is: int32 from 0 to `size` - 1."""
        return jax.lax.axis_index(self.axes) if self.axes else jnp.int32(0)

    def sent(self, tree: Tree, to: Sequence[int]) -> Tree:
        """What arrives here where each device i sends its arrays to device `to[i]`, no two to the same."""
        if list(to) == list(range(self.size)):
            return tree
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axes, list(enumerate(to))), tree)

    def passed(self, tree: Tree, by: int = 1) -> Tree:
        """The arrays of the device `by` places before this one; the first stands behind the last."""
        return self.sent(tree, [(i + by) % self.size for i in range(self.size)])

    def summed(self, tree: Tree) -> Tree:
        """Sums over all devices."""
        return jax.lax.psum(tree, self.axes) if self.axes else tree

    def gathered(self, x: jax.Array, axis: int) -> jax.Array:
        """The parts of all devices one after the other along `axis`."""
        return jax.lax.all_gather(x, self.axes, axis=axis, tiled=True) if self.axes else x

    def swapped(self, x: jax.Array, cut: int, joined: int) -> jax.Array:
        """Part i of the axis `cut` goes to device i, and those that arrive here are joined along the axis `joined`."""
        if self.size == 1:
            return x
        return jax.lax.all_to_all(x, self.axes, split_axis=cut, concat_axis=joined, tiled=True)

    def exchanged(
        self,
        x: jax.Array,
        into: jax.Array,
        left: jax.Array,
        sizes: jax.Array,
        placed: jax.Array,
        coming: jax.Array,
    ) -> jax.Array:
        """`into` with the pieces of all devices' arrays that come here, each a run of entries of the first axis.

        Args:
          x: what pieces are sent of; no two of them overlap where they arrive.
          left: int32, the first entry of each piece in `x`. As many go to every device, those to the first come first.
          sizes: int32, their entries.
          placed: int32, the first entry of each in `into` of the device that it goes to.
          coming: int32, entries of those that come here, as many from every device, the first one's come first.
        """

        def padded(x, into, left, sizes, placed, coming):
            # Each piece as large as any could be.
            places = jnp.arange(min(len(x), len(into)))
            pieces = jnp.take(x, left[:, None] + places, axis=0, mode="clip")
            pieces, placed = self.swapped(pieces, cut=0, joined=0), self.swapped(placed, cut=0, joined=0)
            targets = jnp.where(places < coming[:, None], placed[:, None] + places, len(into))
            return into.at[targets].set(pieces, mode="drop")

        def ragged(*arguments):
            return jax.lax.ragged_all_to_all(*arguments, axis_name=self.axes)

        tables = (x.astype(jnp.int32) for x in (left, sizes, placed, coming))
        return jax.lax.platform_dependent(x, into, *tables, cpu=padded, default=ragged)

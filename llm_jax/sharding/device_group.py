"""Groups of devices that hold shards of the same arrays, and their collectives."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp

from llm_jax.sharding.platforms import by_platform

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class DeviceGroup:
    """`size` devices in the order of their shards, as seen by one of them. The methods must be called inside a function
    that runs under `partition.per_device`."""

    axes: tuple[str, ...]
    """Mesh axes of the group; empty for a single device."""
    size: int

    @property
    def index(self) -> jax.Array:
        """Index of this device in the group: int32 from 0 to `size` - 1."""
        return jax.lax.axis_index(self.axes) if self.axes else jnp.int32(0)

    def sent(self, tree: Tree, to: Sequence[int]) -> Tree:
        """The arrays received if each device i sends its arrays to device `to[i]`, which must be a permutation."""
        if list(to) == list(range(self.size)):
            return tree
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axes, list(enumerate(to))), tree)

    def passed(self, tree: Tree, by: int = 1) -> Tree:
        """The arrays of the device `by` indices before this one, in a ring."""
        return self.sent(tree, [(i + by) % self.size for i in range(self.size)])

    def summed(self, tree: Tree) -> Tree:
        """Sums over all devices."""
        return jax.lax.psum(tree, self.axes) if self.axes else tree

    def gathered(self, x: jax.Array, axis: int) -> jax.Array:
        """All-gather: the shards of all devices, concatenated along `axis`."""
        return jax.lax.all_gather(x, self.axes, axis=axis, tiled=True) if self.axes else x

    def swapped(self, x: jax.Array, cut: int, joined: int) -> jax.Array:
        """All-to-all: part i of the axis `cut` is sent to device i; received parts are concatenated along `joined`."""
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
        """Ragged all-to-all: `into` with the pieces that all devices send to this one. A piece is a range of entries of
        the first axis.

        Args:
          x: array from which pieces are sent; received pieces must not overlap.
          left: int32, index of the first entry of each piece in `x`. Every device is sent the same number of pieces,
            sorted by device.
          sizes: int32, number of entries of each piece.
          placed: int32, index of the first entry of each piece in `into` of the receiving device.
          coming: int32, number of entries of each received piece; the same number of pieces from every device, sorted
            by device.
        """

        def padded(x, into, left, sizes, placed, coming):
            # All pieces are padded to the maximum size.
            places = jnp.arange(min(len(x), len(into)))
            pieces = jnp.take(x, left[:, None] + places, axis=0, mode="clip")
            pieces, placed = self.swapped(pieces, cut=0, joined=0), self.swapped(placed, cut=0, joined=0)
            # What lies past the end of a piece gets an index out of bounds and is dropped.
            targets = jnp.where(places < coming[:, None], placed[:, None] + places, len(into))
            return into.at[targets].set(pieces, mode="drop")

        def ragged(*arguments):
            return jax.lax.ragged_all_to_all(*arguments, axis_name=self.axes)

        tables = (x.astype(jnp.int32) for x in (left, sizes, placed, coming))
        # XLA's CPU backend has no ragged all-to-all.
        return by_platform(x, into, *tables, cpu=padded, default=ragged)

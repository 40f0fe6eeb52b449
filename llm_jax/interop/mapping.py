"""How the tensors of a published checkpoint and the leaves of our parameter tree become one another.

A `Tensor` is data: its name there, the leaves here, the axes of both in einops' letters. Read one way it imports, read
the other way it exports.

Legend: d model width, n heads, k key/value heads, g heads per key/value head, h head size, f ffn width, x experts,
v vocabulary, t positions, r token types or relative places, e outputs of a layer outside the blocks, s the axis along
which a fused tensor is cut. A family whose mixers have other axes says what they are.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np
from einops import rearrange

from llm_jax.core.checks import check


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf of our tree, or the place of one layer, and of one expert, in a stacked leaf."""

    path: str
    """Such as 'stack/segment_0/block_0/mixer/query/kernel'."""
    layout: str
    """Its axes: 'd n h'; of a fused tensor with the axis of the cut: 'd (k s) h'."""
    layer: int | None = None
    """Place along the leading axis of layers; None for a leaf without one."""
    share: int = 1
    """Its part of the axis of the cut."""
    expert: int | None = None
    """Place along the axis of experts, which follows that of layers; None for all of them, or none."""
    neighbours: int = 0
    """Leading features of each head that are rotated in pairs (2i, 2i + 1) there; here pairs are (i, i + n/2). They lie
    along h, or along s where the cut goes through the features of a head."""

    @property
    def index(self) -> tuple[int, ...]:
        """Index into the leading axes of the leaf."""
        return tuple(number for number in (self.layer, self.expert) if number is not None)

    def permuted(self, array: np.ndarray, inverse: bool = False) -> np.ndarray:
        """The array [...] of `layout` with the features of its heads in our order; `inverse`: in theirs."""
        if not self.neighbours:
            return array
        axes = _axes(self.layout)
        axis = axes.index("h" if "h" in axes else "s")
        pairs = np.arange(self.neighbours).reshape(-1, 2).T.ravel()
        order = np.concatenate([pairs, np.arange(self.neighbours, array.shape[axis])])
        return np.take(array, np.argsort(order) if inverse else order, axis=axis)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a published checkpoint, and the leaves that are made of it."""

    name: str
    layout: str
    """Its axes: '(n h) d', or for several leaves in one tensor '(n s h) d'."""
    leaves: tuple[Leaf, ...]
    sizes: dict[str, int]
    """Of every letter but s."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return _shape(self.layout, self.sizes | {"s": sum(leaf.share for leaf in self.leaves)})

    def leaf_shape(self, leaf: Leaf) -> tuple[int, ...]:
        """Shape of a leaf, without its axis of layers."""
        return _shape(leaf.layout, self.sizes | {"s": leaf.share})

    def split(self, tensor: np.ndarray) -> list[np.ndarray]:
        """The leaves of the tensor, in order.

        Raises:
          ValueError: if the tensor's shape is not the one that the config asks for.
        """
        check(
            tensor.shape == self.shape,
            f"tensor {self.name} has shape {list(tensor.shape)} and config.json asks for {list(self.shape)}: they do "
            "not belong together",
        )
        if len(self.leaves) == 1:
            parts = [tensor]
        else:
            ends = np.cumsum([leaf.share for leaf in self.leaves])[:-1]
            cut = rearrange(tensor, f"{self.layout} -> {self._cut}", **self._sizes(self.layout))
            parts = np.split(cut, ends)
        return [
            leaf.permuted(rearrange(part, f"{self._whole} -> {leaf.layout}", **self._sizes(self._whole)))
            for leaf, part in zip(self.leaves, parts, strict=True)
        ]

    def join(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """The tensor of its leaves."""
        parts = [
            rearrange(leaf.permuted(array, inverse=True), f"{leaf.layout} -> {self._whole}", **self._sizes(leaf.layout))
            for leaf, array in zip(self.leaves, leaves, strict=True)
        ]
        if len(parts) == 1:
            return parts[0]
        return rearrange(np.concatenate(parts), f"{self._cut} -> {self.layout}")

    @property
    def _cut(self) -> str:
        """The layout with the axis of the cut in front."""
        return " ".join(["s", *(letter for letter in _letters(self.layout) if letter != "s")])

    @property
    def _whole(self) -> str:
        """The layout of what becomes one leaf."""
        return self.layout if len(self.leaves) == 1 else self._cut

    def _sizes(self, layout: str) -> dict[str, int]:
        return {letter: self.sizes[letter] for letter in _letters(layout) if letter != "s"}


def _letters(layout: str) -> list[str]:
    return re.findall(r"[a-z]", layout)


def _axes(layout: str) -> list[str]:
    return re.findall(r"\([^)]*\)|\S+", layout)


def _shape(layout: str, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(math.prod(sizes[letter] for letter in _letters(axis)) for axis in _axes(layout))

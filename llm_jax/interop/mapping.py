"""The map between the tensors of a published checkpoint and the leaves of the parameter tree.

A `Tensor` is data: its published name, its leaves, and the axes of both as einops letters. The same `Tensor` serves
import and export.

Legend: d model width, n heads, k key/value heads, g heads per key/value head, h head size, f ffn width, x experts,
v vocabulary, t positions, r token types or relative positions, e outputs of a layer outside the blocks, s the axis
along which a fused tensor is split. A family whose mixers have further axes defines their letters.
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
    """A leaf of the parameter tree, or the slice of one layer, or of one expert of a layer, in a stacked leaf."""

    path: str
    """Path such as 'stack/segment_0/block_0/mixer/query/kernel'."""
    layout: str
    """Its axes: 'd n h'; for a leaf of a fused tensor, with the split axis: 'd (k s) h'."""
    layer: int | None = None
    """Index along the leading axis of layers; None for a leaf without that axis."""
    share: int = 1
    """Its size along the split axis of a fused tensor."""
    expert: int | None = None
    """Index along the axis of experts, which follows that of layers; None for all experts, or without that axis."""
    neighbours: int = 0
    """Number n of leading features of each head that the checkpoint rotates in pairs (2i, 2i + 1); this package rotates
    pairs (i, i + n/2). The features are axis h, or axis s if the split divides the features of a head."""

    @property
    def index(self) -> tuple[int, ...]:
        """Index into the leading axes of the leaf."""
        return tuple(number for number in (self.layer, self.expert) if number is not None)

    def permuted(self, array: np.ndarray, inverse: bool = False) -> np.ndarray:
        """The array of `layout` with each head's features in this package's order; `inverse`: the published order."""
        if not self.neighbours:
            return array
        axes = _axes(self.layout)
        axis = axes.index("h" if "h" in axes else "s")
        pairs = np.arange(self.neighbours).reshape(-1, 2).T.ravel()
        order = np.concatenate([pairs, np.arange(self.neighbours, array.shape[axis])])
        return np.take(array, np.argsort(order) if inverse else order, axis=axis)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a published checkpoint and the leaves that it holds."""

    name: str
    layout: str
    """Its axes: '(n h) d', or '(n s h) d' for a fused tensor."""
    leaves: tuple[Leaf, ...]
    sizes: dict[str, int]
    """Size of every letter except s."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return _shape(self.layout, self.sizes | {"s": sum(leaf.share for leaf in self.leaves)})

    def leaf_shape(self, leaf: Leaf) -> tuple[int, ...]:
        """Shape of a leaf without its leading axes of `Leaf.index`."""
        return _shape(leaf.layout, self.sizes | {"s": leaf.share})

    def split(self, tensor: np.ndarray) -> list[np.ndarray]:
        """The leaves of the tensor, in order.

        Raises:
          ValueError: if the tensor does not have the shape that the config requires.
        """
        check(
            tensor.shape == self.shape,
            f"tensor {self.name} has shape {list(tensor.shape)} and config.json requires {list(self.shape)}: use the "
            "config.json of these weights",
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
        """The tensor that consists of these leaves; the inverse of `split`."""
        parts = [
            rearrange(leaf.permuted(array, inverse=True), f"{leaf.layout} -> {self._whole}", **self._sizes(leaf.layout))
            for leaf, array in zip(self.leaves, leaves, strict=True)
        ]
        if len(parts) == 1:
            return parts[0]
        return rearrange(np.concatenate(parts), f"{self._cut} -> {self.layout}")

    @property
    def _cut(self) -> str:
        """The layout with the split axis first."""
        return " ".join(["s", *(letter for letter in _letters(self.layout) if letter != "s")])

    @property
    def _whole(self) -> str:
        """The layout of the array that becomes one leaf."""
        return self.layout if len(self.leaves) == 1 else self._cut

    def _sizes(self, layout: str) -> dict[str, int]:
        return {letter: self.sizes[letter] for letter in _letters(layout) if letter != "s"}


def _letters(layout: str) -> list[str]:
    return re.findall(r"[a-z]", layout)


def _axes(layout: str) -> list[str]:
    return re.findall(r"\([^)]*\)|\S+", layout)


def _shape(layout: str, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(math.prod(sizes[letter] for letter in _letters(axis)) for axis in _axes(layout))

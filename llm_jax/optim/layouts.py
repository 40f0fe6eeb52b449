"""How each parameter divides into matrices: what optimizers that treat matrices as matrices have to know.

Blocks that repeat are kept as one array with a leading `layers` axis, those of a block-diagonal matrix with a `blocks`
axis, experts with an `experts` axis. Such an array is a stack: the number of its dimensions does not tell a matrix from
a vector, its logical axes do.
"""

import dataclasses
from typing import Any

import jax

from llm_jax.core import trees
from llm_jax.core.checks import check
from llm_jax.sharding import axes

_STACKING = (axes.LAYERS, axes.BLOCKS, axes.EXPERTS)
_TABLES = (axes.VOCAB, axes.POSITIONS, axes.TYPES, axes.ROUTES, axes.CLASSES)
_VECTORS = ("bias", "scale")


@dataclasses.dataclass(frozen=True)
class Layout:
    """One parameter: a stack of matrices, a stack of vectors, or a stack of scalars."""

    path: str
    """Its path, such as 'stack/0/mixer/query/kernel'."""
    words: tuple[str, ...]
    """The logical word of each of its axes."""

    @property
    def stack(self) -> tuple[int, ...]:
        """The axes that number the items of the stack: leading `layers`, `blocks` and `experts`."""
        depth = 0
        while depth < len(self.words) and self.words[depth] in _STACKING:
            depth += 1
        return tuple(range(depth))

    @property
    def item(self) -> tuple[int, ...]:
        """The axes of one item of the stack."""
        return tuple(range(len(self.stack), len(self.words)))

    @property
    def is_matrix(self) -> bool:
        """Whether an item is a matrix. A bias per head has two axes and is none: its name says so."""
        return len(self.item) >= 2 and self.path.rpartition("/")[2] not in _VECTORS

    @property
    def is_table(self) -> bool:
        """Whether rows are looked up by token, position or type, or scored against, as experts are by a router: not a
        map between hidden spaces."""
        return any(word in _TABLES for word in self.words)

    @property
    def rows(self) -> tuple[int, ...]:
        """The input axes of a matrix: [D, N, H] maps D to N*H, [N, H, D] maps N*H to D."""
        first, last = self.item[0], self.item[-1]
        if self.words[first] != axes.EMBED and self.words[last] == axes.EMBED:
            return self.item[:-1]
        return (first,)

    @property
    def columns(self) -> tuple[int, ...]:
        """The output axes of a matrix."""
        return tuple(axis for axis in self.item if axis not in self.rows)


def layouts(params_abstract: Any, logical_axes: Any) -> Any:
    """The tree of Layouts of a parameter tree.

    Args:
      params_abstract: nested dict of arrays or jax.ShapeDtypeStructs.
      logical_axes: the same nested dict with a tuple of logical words a parameter.

    Raises:
      ValueError: where the two trees name different parameters, or a parameter has not one word an axis.
    """
    words = dict(_named_axes(logical_axes))
    shapes = dict(trees.named_leaves(params_abstract))
    check(bool(shapes), "there are no parameters to optimize: build the model before its optimizer")
    if odd := sorted(words.keys() ^ shapes.keys()):
        raise ValueError(
            f"parameters and logical axes differ at {odd[:5]} ({len(odd)} paths in all): give the optimizer the axes "
            "of the very tree that it is to update"
        )
    for path, shape in shapes.items():
        check(
            len(words[path]) == len(shape.shape),
            f"parameter {path} of shape {shape.shape} has axes {words[path]}: give one word to each dimension",
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, _: Layout(trees.path_name(path), words[trees.path_name(path)]), params_abstract
    )


def _named_axes(logical_axes: Any) -> list[tuple[str, tuple[str, ...]]]:
    leaves = jax.tree_util.tree_leaves_with_path(logical_axes, is_leaf=lambda node: isinstance(node, tuple))
    for path, leaf in leaves:
        check(
            isinstance(leaf, tuple),
            f"logical axes of {trees.path_name(path)} are {leaf!r}: they must be a tuple with one word a dimension",
        )
    return [(trees.path_name(path), leaf) for path, leaf in leaves]

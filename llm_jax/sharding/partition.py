"""From logical words to shardings: parameters, everything shaped like them, batches, activations."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm_jax.core import trees
from llm_jax.sharding import axes
from llm_jax.sharding.rules import Table

Axes = tuple[str, ...]


def logical_axes(boxed: Any) -> Any:
    """The tree of logical axes, one tuple of words a parameter, of an `eval_shape`d `init` with its boxes on.

    Raises:
      ValueError: for a parameter that is not annotated, or annotated with an unknown word.
    """
    is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)  # noqa: E731

    def read(path: tuple, leaf: Any) -> Axes:
        name = trees.path_name(path)
        if not is_box(leaf):
            raise ValueError(f"parameter {name} has no logical axes: annotate it where it is made (layers/linear.py)")
        if unknown := [word for word in leaf.names if word not in axes.WORDS]:
            raise ValueError(f"parameter {name} has axes {leaf.names}: {unknown} are not words of sharding/axes.py")
        return tuple(leaf.names)

    return jax.tree_util.tree_map_with_path(read, boxed, is_leaf=is_box)


def shardings(shapes: Any, axes_tree: Any, mesh: Mesh, table: Table) -> Any:
    """NamedShardings for a tree of shapes whose logical axes are `axes_tree`.

    Raises:
      ValueError: where a dimension does not divide over its mesh axes.
    """

    def place(path: tuple, shape: Any, words: Axes) -> NamedSharding:
        spec = PartitionSpec(*(table[word] for word in words))
        _check_divides(trees.path_name(path), shape.shape, words, spec, mesh)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, shapes, axes_tree)


def like_parameters(tree: Any, parameters: Any, parameter_shardings: Any, mesh: Mesh) -> Any:
    """Shardings for a tree, such as an optimizer state, that holds copies of the parameter tree inside it.

    A leaf whose path ends in a parameter's path and has its shape is laid out as that parameter; all others are
    replicated (counters, and the small factored statistics of Adafactor).
    """
    known = {
        tuple(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(parameters), jax.tree.leaves(parameter_shardings), strict=True
        )
    }
    longest = max((len(path) for path in known), default=0)

    def place(path: tuple, leaf: Any) -> NamedSharding:
        for start in range(max(0, len(path) - longest), len(path)):
            shape, sharding = known.get(tuple(path[start:]), (None, None))
            if shape == leaf.shape:
                return sharding
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, tree)


def batch_sharding(mesh: Mesh, table: Table) -> NamedSharding:
    """Sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(table[axes.BATCH]))


@contextlib.contextmanager
def activate(mesh: Mesh, table: Table) -> Iterator[None]:
    """While tracing inside, layers' activation constraints refer to this mesh and table."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(table.items())):
        yield


def constrain(x: jax.Array, *words: str) -> jax.Array:
    """Lays an activation out by its logical words; does nothing outside `activate`."""
    return nn.with_logical_constraint(x, words)


def whole(x: jax.Array) -> jax.Array:
    """Lays an array out undivided on every device; does nothing outside `activate`."""
    return nn.with_logical_constraint(x, (None,) * x.ndim)


def is_divided(word: str) -> bool:
    """Whether the table of `activate` divides arrays along this word; outside of it none are."""
    table, mesh = dict(nn.get_logical_axis_rules()), jax.sharding.get_abstract_mesh()
    names = table.get(word)
    names = (names,) if isinstance(names, str) else names or ()
    return math.prod(mesh.shape[axis] for axis in names) > 1


def _check_divides(name: str, shape: tuple[int, ...], words: Axes, spec: PartitionSpec, mesh: Mesh) -> None:
    for size, word, names in zip(shape, words, spec, strict=True):
        names = (names,) if isinstance(names, str) else names or ()
        parts = math.prod(mesh.shape[axis] for axis in names)
        if size % parts:
            raise ValueError(
                f"parameter {name} of shape {shape}: axis {word!r} has size {size}, which does not divide over mesh "
                f"axes {names} of {parts} devices; change the size to a multiple of {parts}, or the mesh"
            )

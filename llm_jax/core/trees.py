"""Paths, counts and sizes of parameter trees."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def path_name(path: tuple) -> str:
    """A jax key path as 'stack/0/mixer/query/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> Iterator[tuple[str, Any]]:
    """Yields (path name, leaf) in tree order."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf):
        yield path_name(path), leaf


def count(tree: Any) -> int:
    """Number of elements in all leaves, which are arrays or ShapeDtypeStructs."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def size_bytes(tree: Any) -> int:
    """Global size in bytes of all leaves, which are arrays or ShapeDtypeStructs."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

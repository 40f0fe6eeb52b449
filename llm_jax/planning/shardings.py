"""Shardings of all parameters, and bytes per device."""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import PartitionSpec
from rich.table import Table

from llm_jax.core import trees
from llm_jax.models.build import abstract_parameters
from llm_jax.sharding.partition import HOST
from llm_jax.train.programs import Programs


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """The sharding of one parameter. Bytes on a device are those of the device with most."""

    name: str
    shape: tuple[int, ...]
    logical_axes: tuple[str, ...]
    """The logical axis of each axis."""
    spec: PartitionSpec
    """The mesh axes over which each axis is sharded in forward and backward pass."""
    bytes: int
    device_bytes: int
    optimizer_bytes: int
    """Bytes of its optimizer state and moving average on a device."""


@dataclasses.dataclass(frozen=True)
class Totals:
    """Bytes in the memory of a device; host memory is not counted."""

    parameters: int
    gradients: int
    """Bytes in the parameters' dtype; sums over microbatches are float32."""
    optimizer: int
    """Bytes of the optimizer state."""
    average: int
    """Bytes of the moving average of the parameters."""
    frozen: int
    """Bytes of the parameters of frozen models."""


def shards(made: Programs) -> list[ShardInfo]:
    """Every parameter of a run."""
    state, (_, logical_axes) = made.abstract_state, abstract_parameters(made.model)
    kept = [*_with_paths(state.opt_state), *_with_paths(state.ema)]
    return [
        ShardInfo(
            name=trees.path_name(path),
            shape=leaf.shape,
            logical_axes=axes,
            spec=leaf.sharding.spec,
            bytes=_bytes(leaf.shape, leaf),
            device_bytes=_on_device(leaf),
            optimizer_bytes=sum(_on_device(other) for place, other in kept if place[-len(path) :] == path),
        )
        for (path, leaf), axes in zip(
            _with_paths(state.params),
            jax.tree.leaves(logical_axes, is_leaf=lambda x: isinstance(x, tuple)),
            strict=True,
        )
    ]


def totals(made: Programs) -> Totals:
    """Bytes of all parameters, gradients, optimizer state and moving average on a device."""
    state = made.abstract_state
    shapes, logical_axes = abstract_parameters(made.model)
    gradients = made.layout.gradients(shapes, logical_axes)
    return Totals(
        parameters=_sum(state.params),
        gradients=sum(
            _bytes(sharding.shard_shape(leaf.shape), leaf)
            for leaf, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(gradients), strict=True)
        ),
        optimizer=_sum(state.opt_state),
        average=_sum(state.ema),
        frozen=_sum(state.frozen),
    )


def _with_paths(tree: Any) -> list[tuple[tuple, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def _sum(tree: Any) -> int:
    return sum(map(_on_device, jax.tree.leaves(tree)))


def _on_device(leaf: jax.ShapeDtypeStruct) -> int:
    if leaf.sharding.memory_kind == HOST:
        return 0
    return _bytes(leaf.sharding.shard_shape(leaf.shape), leaf)


def _bytes(shape: tuple[int, ...], leaf: jax.ShapeDtypeStruct) -> int:
    return math.prod(shape) * leaf.dtype.itemsize


def table(made: Programs) -> Table:
    """`shards` and `totals` as a table for the terminal."""
    sums, found = totals(made), shards(made)
    mesh = ", ".join(f"{axis} {size}" for axis, size in made.layout.mesh.shape.items() if size > 1) or "one device"
    shown = Table(title=f"{type(made.layout.strategy).__name__} over {mesh}; bytes on the device that holds most")
    for heading in ("parameter", "shape", "divided over"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("bytes", "on a device", "optimizer on a device"):
        shown.add_column(heading, justify="right")
    for shard in found:
        sizes = (shard.bytes, shard.device_bytes, shard.optimizer_bytes)
        shown.add_row(shard.name, " x ".join(map(str, shard.shape)), _divided(shard), *map(_readable, sizes))
    shown.add_section()
    whole = sum(shard.bytes for shard in found)
    shown.add_row("all", "", "", _readable(whole), _readable(sums.parameters), _readable(sums.optimizer + sums.average))
    shown.add_row("gradients, while they are there", "", "", "", _readable(sums.gradients), "")
    for name, tree in made.abstract_state.frozen.items():
        whole = sum(_bytes(leaf.shape, leaf) for leaf in jax.tree.leaves(tree))
        shown.add_row(f"frozen model {name}", "", "", _readable(whole), _readable(_sum(tree)), "")
    return shown


def _divided(shard: ShardInfo) -> str:
    parts = [
        f"{word}: {' x '.join((axes,) if isinstance(axes, str) else axes)}"
        for word, axes in zip(shard.logical_axes, shard.spec, strict=True)
        if axes
    ]
    return ", ".join(parts) or "nothing"


def _readable(size: float) -> str:
    """Bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:,.2f} GiB"

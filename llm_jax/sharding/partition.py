"""Shardings from logical axes, for parameters, arrays of their shapes, batches and activations."""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from llm_jax.core import trees
from llm_jax.core.checks import check, given
from llm_jax.core.chips import Device
from llm_jax.sharding import axes, platforms, rules
from llm_jax.sharding.device_group import DeviceGroup
from llm_jax.sharding.mesh import STAGE
from llm_jax.sharding.pipeline_schedule import PipelineSchedule
from llm_jax.sharding.rules import (
    ContextParallel,
    DataParallel,
    Exchange,
    ShardingConfig,
    Strategy,
    Table,
    mesh_axes,
    placed,
)

Axes = tuple[str, ...]
AnyMesh = Mesh | AbstractMesh
"""A mesh of real devices or of abstract ones."""
HOST = "pinned_host"
"""JAX's name of host memory that devices can access."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and a strategy, which determine the sharding of all arrays."""

    mesh: AnyMesh
    strategy: Strategy
    offload: bool = False
    """Whether the optimizer state is in host memory between steps."""
    within: tuple[str, ...] = ()
    """Mesh axes already consumed by an enclosing vmap or shard_map; nothing is sharded over them."""

    @classmethod
    def of(cls, config: ShardingConfig, devices: Sequence[Device] | None = None) -> Self:
        """The layout over `devices`, all if None.

        Raises:
          ValueError: if the mesh does not fit them.
        """
        return cls(config.mesh.build(devices), config.strategy, config.offload)

    @classmethod
    def abstract(cls, config: ShardingConfig, devices: int) -> Self:
        """The layout over `devices` abstract devices, for shapes and sizes only.

        Raises:
          ValueError: if the mesh does not fit them.
        """
        return cls(config.mesh.abstract(devices), config.strategy, config.offload)

    @property
    def concrete(self) -> Mesh:
        """The mesh of real devices.

        Raises:
          ValueError: if the layout has abstract devices.
        """
        if isinstance(self.mesh, AbstractMesh):
            raise ValueError(f"the layout has {self.mesh.size} abstract devices, which cannot compute: use Layout.of")
        return self.mesh

    @property
    def device(self) -> Device | None:
        """One of its devices, which determines the compilation target; None for abstract devices."""
        return None if isinstance(self.mesh, AbstractMesh) else self.mesh.devices.flat[0]

    @property
    def uses_pmap(self) -> bool:
        """Whether functions are compiled by jax.pmap."""
        return self.strategy == DataParallel(use_pmap=True)

    @functools.cached_property
    def table(self) -> Table:
        """Mesh axes of the logical axes of parameters and activations in forward and backward pass."""
        table = self.strategy.table()
        return {word: tuple(a for a in mesh_axes(table, word) if a not in self.within) or None for word in table}

    @property
    def schedule(self) -> PipelineSchedule | None:
        """The pipeline schedule; None without a pipeline."""
        return rules.schedule(self.strategy, self.mesh.shape[STAGE])

    def sharding(self, *logical_axes: str) -> NamedSharding:
        """Sharding of an activation whose leading axes have these logical axes; further axes are not sharded."""
        return NamedSharding(self.mesh, self.spec(logical_axes))

    def spec(self, logical_axes: Axes) -> PartitionSpec:
        """Mesh axes of an activation whose leading axes have these logical axes."""
        return PartitionSpec(*(names or None for names in placed(self.table, logical_axes)))

    def gradient_sharding(self, *logical_axes: str) -> NamedSharding:
        """Sharding of operands and results of gradient computations; see `constrain_gradient`."""
        # From the back: a mesh axis goes to the last logical axis that maps to it, whereas `placed` gives it to the
        # first.
        table, spec = self.strategy.gradients(), []
        for index, word in enumerate(logical_axes):
            later = {axis for other in logical_axes[index + 1 :] for axis in mesh_axes(table, other)} | {*self.within}
            spec.append(tuple(axis for axis in mesh_axes(table, word) if axis not in later) or None)
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    @property
    def rows(self) -> NamedSharding:
        """Sharding of arrays whose first axis is the batch."""
        return self.sharding(axes.BATCH)

    @property
    def whole(self) -> NamedSharding:
        """Sharding of replicated arrays."""
        return self.sharding()

    def parts(self, word: str) -> int:
        """Number of shards of activations along the logical axis `word`."""
        return math.prod(self.mesh.shape[axis] for axis in mesh_axes(self.table, word))

    @property
    def exchange(self) -> Exchange | None:
        """How attention accesses other shards of a sequence; None if the sequence axis is not sharded."""
        if self.parts(axes.LENGTH) == 1:
            return None
        return next(part.exchange for part in rules.parts(self.strategy) if isinstance(part, ContextParallel))

    def parameters(self, shapes: Any, logical_axes: Any) -> Any:
        """Shardings of parameters; see `shardings`."""
        return shardings(shapes, logical_axes, self.mesh, self.table)

    def gradients(self, shapes: Any, logical_axes: Any) -> Any:
        """Shardings of gradients, by shapes and logical axes of their parameters."""
        return shardings(shapes, logical_axes, self.mesh, self.strategy.gradients())

    def optimizer(self, shapes: Any, logical_axes: Any) -> Any:
        """Shardings of optimizer state, by shapes and logical axes of the parameters."""
        return shardings(shapes, logical_axes, self.mesh, self.strategy.optimizer())


_active: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)


@contextlib.contextmanager
def activate(layout: Layout) -> Iterator[None]:
    """Context in which traced layers constrain the sharding of their activations by `layout`. With jax.pmap a function
    is that of one device, so nothing is constrained."""
    with platforms.tracing_for(layout.concrete.devices.flat[0].platform):
        if layout.uses_pmap:
            yield
            return
        with using(layout), jax.set_mesh(layout.concrete):
            yield


@contextlib.contextmanager
def using(layout: Layout | None) -> Iterator[None]:
    """Context in which `layout` is the active layout while tracing: for code that JAX traces later than it is called,
    such as the passes of a `jax.custom_vjp`."""
    token = _active.set(layout)
    try:
        yield
    finally:
        _active.reset(token)


@contextlib.contextmanager
def deactivated() -> Iterator[None]:
    """Context without an active layout and mesh, to compute with arrays of one device inside `activate`, whose mesh jax
    would require of every argument of a jitted function."""
    with using(None), jax.set_mesh(Mesh(np.empty((), object), ())):
        yield


@contextlib.contextmanager
def within(*mesh_axes: str) -> Iterator[None]:
    """Context in which constraints exclude these mesh axes while tracing, because an enclosing vmap or shard_map
    already consumes them."""
    with using(dataclasses.replace(required(), within=mesh_axes)):
        yield


def active() -> Layout | None:
    """The layout of `activate`; None outside it."""
    return _active.get()


def required() -> Layout:
    """The layout of `activate`. Raises ValueError outside it."""
    return given(_active.get(), "there is no active layout: call it inside partition.activate(layout)")


def constrain(x: jax.Array, *logical_axes: str) -> jax.Array:
    """Constrains the sharding of an activation by its logical axes; does nothing outside `activate`."""
    layout = active()
    return x if layout is None else jax.lax.with_sharding_constraint(x, layout.sharding(*logical_axes))


def constrain_gradient(x: jax.Array, *logical_axes: str) -> jax.Array:
    """`constrain` for operands and results of parameter gradients: they get the sharding in which gradients are summed.
    If two logical axes map to the same mesh axis, the last one is sharded."""
    layout = active()
    return x if layout is None else jax.lax.with_sharding_constraint(x, layout.gradient_sharding(*logical_axes))


def parts(word: str) -> int:
    """Number of shards of activations along the logical axis `word` in the layout of `activate`; 1 outside it."""
    layout = active()
    return 1 if layout is None else layout.parts(word)


def divides(shape: tuple[int, ...], logical_axes: Axes) -> bool:
    """Whether the shape of an activation divides evenly into shards."""
    return all(size % parts(word) == 0 for size, word in zip(shape, logical_axes, strict=False))


def head_copies(kv_heads: int) -> int:
    """Number of repetitions of each key/value head, so that they divide over the devices over which query heads are
    sharded, as in Megatron-LM (megatron/core/transformer/attention.py, `num_query_groups` below the tensor parallel
    size)."""
    devices = parts(axes.KV_HEADS)
    return devices // math.gcd(devices, kv_heads)


def device_group(axis: str, *before: str) -> DeviceGroup:
    """The devices over which the active layout shards an array along the logical axis `axis`, if the axes before it are
    `before`; a group of one device without a layout."""
    layout = active()
    if layout is None:
        return DeviceGroup((), 1)
    names = placed(layout.table, (*before, axis))[-1]
    return DeviceGroup(names, math.prod(layout.mesh.shape[name] for name in names))


def per_device(function: Callable, inputs: tuple, outputs: Any) -> Callable:
    """`function` under shard_map: every device runs it on its own shards. A `DeviceGroup` provides collectives.

    No layout is active while it is traced. Outside `activate` the result is `function` itself.

    Args:
      inputs: for every argument a tree of its structure with tuples of logical axes, as in `constrain`.
      outputs: a tree of such tuples with the structure of the result.

    Raises:
      ValueError: if it is called with arrays that do not divide.
    """
    layout = active()
    if layout is None:
        return function
    is_words = lambda leaf: isinstance(leaf, tuple) and all(isinstance(word, str) for word in leaf)  # noqa: E731
    specs = [jax.tree.map(layout.spec, tree, is_leaf=is_words) for tree in (inputs, outputs)]

    # Inside, arrays are shards, and their mesh axes are no longer free for constraints.
    def alone(*arguments):
        with using(None):
            return function(*arguments)

    def checked(*arguments):
        flat, structure = jax.tree.flatten(inputs, is_leaf=is_words)
        for x, logical_axes in zip(structure.flatten_up_to(arguments), flat, strict=True):
            for size, word, names in zip(x.shape, logical_axes, placed(layout.table, logical_axes), strict=False):
                devices = math.prod(layout.mesh.shape[axis] for axis in names)
                check(
                    size % devices == 0,
                    f"an activation of shape {x.shape} has size {size} along {word!r}, which must be divisible by "
                    f"{devices} devices: change the size to a multiple of {devices}, or the mesh",
                )
        # `function` guarantees that replicated outputs are equal on all devices, so JAX need not check it.
        found = jax.shard_map(alone, mesh=layout.mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False)
        return found(*arguments)

    return checked


def per_shard(function: Callable[[jax.Array], jax.Array], *logical_axes: str) -> Callable[[jax.Array], jax.Array]:
    """`function`, run separately on each shard of an array whose leading axes have these logical axes. It must treat
    all indices of these axes independently. For operations before which XLA would all-gather the array, such as top_k.
    An array that does not divide is left to XLA."""

    def run(x: jax.Array) -> jax.Array:
        return per_device(function, (logical_axes,), logical_axes)(x) if divides(x.shape, logical_axes) else function(x)

    return run


def logical_axes(boxed: Any) -> Any:
    """The tree of logical axes, one tuple for each parameter, of the boxed result of an `eval_shape`d `init`.

    Raises:
      ValueError: if a parameter is not annotated, or has an unknown logical axis.
    """
    is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)  # noqa: E731

    def read(path: tuple, leaf: Any) -> Axes:
        name = trees.path_name(path)
        if not is_box(leaf):
            raise ValueError(f"parameter {name} has no logical axes: annotate its initialiser (layers/linear.py)")
        if unknown := [word for word in leaf.names if word not in axes.LOGICAL_AXES]:
            raise ValueError(
                f"parameter {name} has axes {leaf.names}: {unknown} are not logical axes of sharding/axes.py"
            )
        return tuple(leaf.names)

    return jax.tree_util.tree_map_with_path(read, boxed, is_leaf=is_box)


def shardings(shapes: Any, axes_tree: Any, mesh: AnyMesh, table: Table) -> Any:
    """NamedShardings for a tree of shapes whose logical axes are `axes_tree`. Layer axes shorter than the number of
    shards are not sharded, nor are key/value heads that do not divide: attention repeats them (`head_copies`).

    Raises:
      ValueError: if another dimension does not divide over its mesh axes.
    """

    def over(size: int, word: str, names: tuple[str, ...]) -> tuple[str, ...] | None:
        devices = math.prod(mesh.shape[axis] for axis in names)
        # The layers of a short segment are not pipelined (pipeline_schedule.py).
        whole = (word == axes.LAYERS and size < devices) or (word == axes.KV_HEADS and size % devices != 0)
        return None if whole else names or None

    def place(path: tuple, shape: Any, logical_axes: Axes) -> NamedSharding:
        spec = PartitionSpec(*map(over, shape.shape, logical_axes, placed(table, logical_axes)))
        _check_divides(trees.path_name(path), shape.shape, logical_axes, spec, mesh)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, shapes, axes_tree)


def like_parameters(tree: Any, parameters: Any, parameter_shardings: Any, mesh: AnyMesh) -> Any:
    """Shardings for a tree, such as an optimizer state, that contains trees with the structure of the parameters.

    A leaf whose path ends with the path of a parameter and that has its shape gets the sharding of that parameter. All
    others are replicated (counters, and the small factored statistics of Adafactor).
    """
    known = {
        tuple(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(parameters), jax.tree.leaves(parameter_shardings), strict=True
        )
    }
    longest = max((len(path) for path in known), default=0)

    def place(path: tuple, leaf: Any) -> NamedSharding:
        # The longest suffix first: a short one, such as `bias`, could be that of another parameter.
        for start in range(max(0, len(path) - longest), len(path)):
            shape, sharding = known.get(tuple(path[start:]), (None, None))
            if shape == leaf.shape:
                return sharding
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, tree)


def _check_divides(name: str, shape: tuple[int, ...], logical_axes: Axes, spec: PartitionSpec, mesh: AnyMesh) -> None:
    for size, word, names in zip(shape, logical_axes, spec, strict=True):
        names = (names,) if isinstance(names, str) else names or ()
        names = tuple(axis for axis in names if mesh.shape[axis] > 1)
        parts = math.prod(mesh.shape[axis] for axis in names)
        if size % parts:
            raise ValueError(
                f"parameter {name} of shape {shape}: axis {word!r} has size {size}, which must be divisible by the "
                f"{parts} devices of mesh axes {names}; change the size to a multiple of {parts}, or the mesh"
            )

"""The device mesh: named axes over the devices of all processes."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from llm_jax.core.checks import check, check_positive
from llm_jax.core.chips import Device
from llm_jax.core.configclass import configclass

DATA = "data"
FSDP = "fsdp"
STAGE = "stage"
EXPERT = "expert"
CONTEXT = "context"
TENSOR = "tensor"


@configclass
class Axes:
    """Sizes of the mesh axes. Axes with most communication per step come last, because these get the nearest
    devices."""

    data: int = 1
    """Replicas with different examples and the same parameters."""
    fsdp: int = 1
    """Replicas with different examples and a shard of the parameters each."""
    stage: int = 1
    """Pipeline stages: devices that hold a part of the layers each and send activations to the next."""
    expert: int = 1
    """Replicas with different examples and a subset of the experts each."""
    context: int = 1
    """Devices with different shards of the same sequences."""
    tensor: int = 1
    """Devices with the same examples that compute a part of every layer each."""

    def __post_init__(self):
        check_positive(**dataclasses.asdict(self))


@configclass
class MeshConfig(Axes):
    """Sizes of the mesh axes. One of them may be -1: it is set to the remaining number of devices."""

    data: int = -1
    """Replicas with different examples and the same parameters."""
    across: Axes = Axes()
    """The factor of each size that spans slices of TPUs, or hosts of GPUs, with a slower network between them: with
    `fsdp` 16 and `across.fsdp` 2 there are 8 per slice. All 1: one slice, or a uniform network."""

    def __post_init__(self):
        for name, size in self.sizes.items():
            check(size >= 1 or size == -1, f"mesh.{name} is {size}: it must be 1 or greater, or -1 for 'the rest'")
        self._check_across({name: size for name, size in self.sizes.items() if size != -1})
        free = [name for name, size in self.sizes.items() if size == -1]
        check(
            len(free) <= 1,
            f"mesh axes {free} are all -1: only one can have the remaining devices; set the sizes of the others",
        )

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each axis by name, in the order of the mesh."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Axes)}

    def build(self, devices: Sequence[Device] | None = None) -> Mesh:
        """The mesh over `devices` (default: all). Neighbours along an axis are near in the network.

        Raises:
          ValueError: if the product of the sizes is not the number of devices, or that of `across` not the number of
            slices.
        """
        devices = jax.devices() if devices is None else devices
        simulated = "; `llm-jax train FILE --cpu-devices N` simulates N devices on a CPU"
        sizes = self._filled(len(devices), simulated * (jax.default_backend() == "cpu"))
        # Auto axes: the compiler propagates shardings from annotations. jax.make_mesh would create Explicit axes.
        return Mesh(self._arranged(devices, sizes), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))

    def abstract(self, devices: int) -> AbstractMesh:
        """The mesh over `devices` abstract devices, for ahead-of-time compilation and shapes.

        Raises:
          ValueError: if the product of the sizes is not that number.
        """
        sizes = self._filled(devices)
        return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))

    def _filled(self, devices: int, hint: str = "") -> dict[str, int]:
        check_positive(devices=devices)
        sizes = self.sizes
        fixed = math.prod(size for size in sizes.values() if size != -1)
        free = next((name for name, size in sizes.items() if size == -1), None)
        if free is not None and devices % fixed == 0:
            sizes[free] = devices // fixed
        if math.prod(sizes.values()) != devices:
            others = {name: size for name, size in sizes.items() if name not in (DATA, FSDP) and size > 1}
            raise ValueError(
                f"mesh {self.sizes} does not fit {devices} devices: the product of the sizes must be that "
                f"number; possible (data, fsdp) with {others or 'axes of size 1'}: "
                f"{_pairs(devices, math.prod(others.values()))}" + hint
            )
        self._check_across(sizes)
        return sizes

    def _check_across(self, sizes: dict[str, int]) -> None:
        for name, size in sizes.items():
            part = getattr(self.across, name)
            check(
                size % part == 0,
                f"mesh.{name} is {size} and mesh.across.{name} {part}: the part across slices must divide the axis",
            )

    def _arranged(self, devices: Sequence[Device], sizes: dict[str, int]) -> np.ndarray:
        """The devices as an array with one axis per mesh axis."""
        across = dataclasses.astuple(self.across)
        if math.prod(across) == 1:
            # An axis of the mesh may be a part of a physical axis of the torus if no whole one has its size.
            return mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
        # The TPU runtime numbers the slices. On GPUs the process index identifies the host.
        by_slice = len({getattr(device, "slice_index", 0) for device in devices}) > 1
        groups = {getattr(device, "slice_index" if by_slice else "process_index") for device in devices}
        check(
            math.prod(across) == len(groups),
            f"mesh.across is {self.across} and the devices are in {len(groups)} {'slices' if by_slice else 'hosts'}: "
            "the product of its sizes must be that number",
        )
        within = tuple(size // part for size, part in zip(sizes.values(), across, strict=True))
        return mesh_utils.create_hybrid_device_mesh(
            within, across, devices, process_is_granule=not by_slice, allow_split_physical_axes=True
        )


def _pairs(devices: int, others: int) -> list[tuple[int, int]] | str:
    """Pairs (data, fsdp) that use all devices if the other axes have the product `others`."""
    rest, left_over = divmod(devices, others)
    return list(_divisions(rest)) if not left_over else "none"


def _divisions(number: int) -> Iterator[tuple[int, int]]:
    return ((n, number // n) for n in range(1, number + 1) if number % n == 0)

"""The device mesh: named axes over the devices of all hosts."""

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from llm_jax.core.checks import check

DATA = "data"
FSDP = "fsdp"
TENSOR = "tensor"


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes. One of them may be -1: it takes the devices that the others leave."""

    data: int = -1
    """Replicas that see different examples and hold the same parameters."""
    fsdp: int = 1
    """Replicas that see different examples and hold a part of the parameters each."""
    tensor: int = 1
    """Devices that see the same examples and compute a part of every layer each."""

    def __post_init__(self):
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            check(size >= 1 or size == -1, f"mesh.{name} is {size}: it must be 1 or greater, or -1 for 'the rest'")
        free = [name for name, size in sizes.items() if size == -1]
        check(
            len(free) <= 1,
            f"mesh axes {free} are all -1: only one can take the remaining devices; give the others a size",
        )

    def build(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """The mesh over `devices` (default: all).

        Raises:
          ValueError: if the sizes do not multiply to the number of devices.
        """
        devices = jax.devices() if devices is None else devices
        sizes = dataclasses.asdict(self)
        fixed = math.prod(size for size in sizes.values() if size != -1)
        free = next((name for name, size in sizes.items() if size == -1), None)
        if free is not None and len(devices) % fixed == 0:
            sizes[free] = len(devices) // fixed
        if math.prod(sizes.values()) != len(devices):
            raise ValueError(
                f"mesh {dataclasses.asdict(self)} does not fit {len(devices)} devices: the sizes must multiply to that "
                f"number; (data, fsdp) that do beside tensor = {sizes[TENSOR]}: {_pairs(len(devices), sizes[TENSOR])}"
            )
        # Auto axes: the compiler propagates shardings from the annotations. jax.make_mesh would make Explicit ones.
        return jax.make_mesh(
            tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=devices
        )


def _pairs(devices: int, tensor: int) -> list[tuple[int, int]] | str:
    """Sizes of data and fsdp that use all devices beside an axis of size `tensor`."""
    rest, left_over = divmod(devices, tensor)
    return [(n, rest // n) for n in range(1, rest + 1) if rest % n == 0] if not left_over else "none"

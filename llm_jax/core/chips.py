"""Table of accelerator chips: published peak FLOP/s (the denominator of MFU), memory, and XLA compiler options.

For an unknown chip no MFU is printed."""

import dataclasses
from typing import Protocol


class Device(Protocol):
    """The attributes used of `jax.Device`, whose class type checkers do not know."""

    @property
    def platform(self) -> str: ...
    @property
    def device_kind(self) -> str: ...
    @property
    def process_index(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Chip:
    """Dense bfloat16 peak FLOP/s and memory of one jax device, from `source`."""

    name: str
    peak_flops: float
    memory_bytes: int
    source: str
    compiler_options: tuple[tuple[str, str], ...] = ()
    """XLA compiler options for all compiled training functions."""


_GIB = 2**30
_OFFLOAD = "xla_tpu_enable_sparse_core_collective_offload_"
_SPARSE_CORES = (
    *((f"{_OFFLOAD}{kind}", "true") for kind in ("all_gather", "2d_all_gather", "3d_all_gather")),
    *((f"{_OFFLOAD}{kind}", "true") for kind in ("reduce_scatter", "nd_reduce_scatter", "all_reduce")),
    (f"{_OFFLOAD}dense_all_to_all", "true"),
    ("xla_tpu_sparse_core_all_reduce_offload_min_size_in_bytes", "0"),
)
"""Offloads collectives to the SparseCores, so that they overlap with matrix products. Without these options libtpu
0.0.52 makes all-gathers of weights and reductions of gradients synchronous. 2d and 3d mean collectives over two and
three axes of the torus. Without the last option, reductions of norm scales would still be synchronous."""


def _vector_memory(kib: int) -> tuple[tuple[str, str], ...]:
    """Limit of vector memory for one operation. With libtpu's default the tiles of matrix products are so small that
    many run at half of the peak, by the compiler's own estimate."""
    return (("xla_tpu_scoped_vmem_limit_kib", str(kib)),)


_V5P = _SPARSE_CORES + _vector_memory(48 * 1024)
_V6E = _SPARSE_CORES + _vector_memory(96 * 1024)

_CHIPS = {
    "TPU v4": Chip("TPU v4", 275e12, 32 * _GIB, "cloud.google.com/tpu/docs/v4"),
    "TPU v5 lite": Chip("TPU v5e", 197e12, 16 * _GIB, "cloud.google.com/tpu/docs/v5e"),
    "TPU v5": Chip("TPU v5p", 459e12, 95 * _GIB, "cloud.google.com/tpu/docs/v5p", _V5P),
    "TPU v5p": Chip("TPU v5p", 459e12, 95 * _GIB, "cloud.google.com/tpu/docs/v5p", _V5P),
    "TPU v6 lite": Chip("TPU v6e", 918e12, 32 * _GIB, "cloud.google.com/tpu/docs/v6e", _V6E),
    "NVIDIA A100-SXM4-40GB": Chip("A100 40GB", 312e12, 40 * _GIB, "NVIDIA A100 data sheet"),
    "NVIDIA A100-SXM4-80GB": Chip("A100 80GB", 312e12, 80 * _GIB, "NVIDIA A100 data sheet"),
    "NVIDIA H100 80GB HBM3": Chip("H100 SXM", 989.4e12, 80 * _GIB, "NVIDIA H100 data sheet, dense"),
    "NVIDIA H200": Chip("H200", 989.4e12, 141 * 10**9, "NVIDIA H200 data sheet, dense"),
}


def chip(device_kind: str) -> Chip | None:
    """The chip whose jax device kind is `device_kind`; None if it is not in the table."""
    return _CHIPS.get(device_kind)

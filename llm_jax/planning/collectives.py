"""Collective operations of a program, and the bytes that they move.

Bytes moved are those that one device sends, which equal those that it receives, with the algorithms that move least
(Thakur, Rabenseifner and Gropp 2005, "Optimization of collective communication operations in MPICH", sections 4.1-4.5;
Chan et al. 2007, "Collective communication: theory, practice, and experience"). With n devices, and an operand of S
bytes per device:
    all-gather           (n - 1) S          each device's shard is sent to all others
    reduce-scatter       (n - 1) / n S
    all-reduce           2 (n - 1) / n S    a reduce-scatter, then an all-gather
    all-to-all           (n - 1) / n S      one part in n is not sent
    collective-permute   S
"""

import dataclasses
import math
import re
from collections.abc import Iterable

from llm_jax.planning.hlo import Array, Operation

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation. Bytes are per device and execution."""

    kind: str
    name: str
    group: int
    """Number of devices in a group."""
    operand_bytes: int
    """Bytes of the operands of a device. For a ragged all-to-all, whose sizes are known only at run time, an upper
    bound."""
    executions: int
    """Number of executions per step."""
    loops: tuple[str, ...]
    """Names of the enclosing loops, the outermost first."""
    asynchronous: bool
    """Whether start and end are separate operations, so that other work can overlap."""

    @property
    def result_bytes(self) -> int:
        """Bytes of the result on a device."""
        if self.kind == "all-gather":
            return self.operand_bytes * self.group
        return self.operand_bytes // self.group if self.kind == "reduce-scatter" else self.operand_bytes

    @property
    def moved_bytes(self) -> float:
        """Bytes that a device sends, by the formulas above."""
        share = (self.group - 1) / self.group
        if self.kind == "all-gather":
            return self.operand_bytes * (self.group - 1)
        if self.kind == "all-reduce":
            return 2 * share * self.operand_bytes
        return self.operand_bytes * (1 if self.kind in ("collective-permute", "collective-broadcast") else share)


def kind_of(operation: Operation) -> str | None:
    """The kind of collective that an operation runs or starts; None for other operations and for the end of one."""
    kind = operation.opcode.removesuffix("-start")
    return kind if kind in KINDS else None


def operand_bytes(kind: str, operands: tuple[tuple[Array, ...], ...]) -> int:
    """Bytes that a device contributes to a collective with these operands."""
    sizes = [sum(array.bytes for array in arrays) for arrays in operands]
    # Its operands are the data, the output buffer, and four tables of offsets and sizes.
    return min(sizes[:2]) if kind == "ragged-all-to-all" else sum(sizes)


def group_size(operation: Operation, devices: int) -> int:
    """Number of devices in the largest group of a collective in a program for `devices` devices. The groups of a
    collective-permute are the sets of devices that its pairs connect.

    Raises:
      ValueError: if the format of the groups is not supported.
    """
    pairs = operation.attribute(r", source_target_pairs=\{(\{.*?\})\}")
    if pairs is not None:
        return _largest_connected(re.findall(r"(\d+),(\d+)", pairs))
    text = operation.attribute(r", replica_groups=(.*)")
    if text is None or text.startswith("{}"):
        return devices
    if listed := re.match(r"\{(\{[\d,]+\}(?:,\{[\d,]+\})*)\}", text):
        return max(len(group.split(",")) for group in re.findall(r"\{([\d,]+)\}", listed.group(1)))
    if tiled := re.match(r"\[\d+,(\d+)\]<=", text):
        return int(tiled.group(1))
    mesh = re.match(r"@?mesh\w*\[([^\]]*)\][^{]*\{([^}]*)\}", text)
    if mesh is None:
        raise ValueError(f"{operation.name} has replica_groups={text[:80]}: this form is not supported; report it")
    sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", mesh.group(1))}
    # Either 'axis', or 'axis':(before)size for a part of the axis.
    parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh.group(2))
    return math.prod(int(part) if part else sizes[axis] for axis, part in parts)


def _largest_connected(pairs: Iterable[tuple[str, str]]) -> int:
    """Size of the largest set of devices that pairs of different devices connect; 0 if there is no such pair."""
    groups: list[set[str]] = []
    for pair in pairs:
        if pair[0] != pair[1]:
            met = [group for group in groups if group & set(pair)]
            groups = [group for group in groups if group not in met] + [set(pair).union(*met)]
    return max(map(len, groups), default=0)

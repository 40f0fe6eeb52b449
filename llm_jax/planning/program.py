"""Work of one step of a compiled program on one device, from its HLO text.

All counts are multiplied by the trip counts of the enclosing loops. The compiler's `cost_analysis()` counts the body of
a loop once, so it is not used.
"""

import dataclasses
from typing import Any, Self

import jax

from llm_jax.planning import hlo_products as products
from llm_jax.planning.collectives import Collective, group_size, kind_of, operand_bytes
from llm_jax.planning.hlo import Module, Operation, Scope
from llm_jax.planning.loops import trip_count

_ASYNC_START = "AsyncCollectiveStart"
_MARKS = frozenset(
    {
        "AllocateBuffer",
        "AssumeGatherIndicesInBound",
        "AsyncCollectiveDone",
        "AsyncCollectiveStart",
        "ConcatBitcast",
        "GatherScatterIndicesBitpacked",
        "Sharding",
    }
)
"""Custom calls of the TPU compiler that are annotations or allocations and compute nothing."""
_UNDESCRIBED = frozenset({"ragged-dot", "scaled-dot"})
"""Matrix products whose FLOPs do not follow from their shapes."""


@dataclasses.dataclass(frozen=True)
class Loop:
    """A `while` loop."""

    name: str
    rounds: int | None
    """Iterations per execution of the loop; None if they depend on run-time values."""
    executions: int
    """Iterations per step, including those of enclosing loops. An unknown count is replaced by the argument `rounds` of
    `read`."""
    loops: tuple[str, ...]
    """Names of the enclosing loops, the outermost first."""


@dataclasses.dataclass(frozen=True)
class CustomCall:
    """Work that the HLO text does not describe: a custom call other than a matrix product of a known library."""

    name: str
    target: str
    """Name of the called function, or the opcode."""
    flops: int | None
    """FLOPs of one execution by the annotation of the kernel's author (`cost_estimate`); None without one."""
    executions: int
    """Number of executions per step."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device by the compiler's allocation (`Compiled.memory_analysis`)."""

    arguments: int
    outputs: int
    aliased: int
    """Bytes of outputs that reuse donated arguments."""
    temporary: int
    code: int
    peak: int
    """Peak memory as reported by the compiler. It is not comparable between compilers: the compiler for CPUs excludes
    temporary memory, and for small programs on v5e it exceeds the sum of all other values."""
    host: int
    """Temporary bytes in host memory."""

    @property
    def held(self) -> int:
        """Bytes that the program requires, to compare with the memory of a chip."""
        return self.arguments + self.outputs - self.aliased + self.temporary + self.code

    @classmethod
    def of(cls, compiled: jax.stages.Compiled) -> Self | None:
        """The memory of a compiled program; None if its compiler does not report it."""
        found = compiled.memory_analysis()
        if found is None:
            return None
        return cls(
            arguments=found.argument_size_in_bytes,
            outputs=found.output_size_in_bytes,
            aliased=found.alias_size_in_bytes,
            temporary=found.temp_size_in_bytes,
            code=found.generated_code_size_in_bytes,
            peak=found.peak_memory_in_bytes,
            host=found.host_temp_size_in_bytes,
        )


@dataclasses.dataclass(frozen=True)
class Program:
    """One step on one device."""

    devices: int
    flops: int
    """FLOPs of matrix products, including library calls and excluding `kernels`: see `uncounted`."""
    collectives: tuple[Collective, ...]
    """Collectives between two or more devices, in the order of the program."""
    loops: tuple[Loop, ...]
    kernels: tuple[CustomCall, ...]
    cycles: int | None
    """Sum of the TPU compiler's estimates over operations, without transfers between devices and without kernels, for
    ranking programs. None for other compilers, which make no estimates."""
    memory: Memory | None
    """None if the program was read from text."""

    @property
    def exact(self) -> bool:
        """Whether the trip counts of all loops are known. Otherwise the argument `rounds` of `read` replaces unknown
        ones."""
        return all(loop.rounds is not None for loop in self.loops)

    @property
    def uncounted(self) -> tuple[CustomCall, ...]:
        """Kernels without annotated FLOPs. If there are any, `flops` is a lower bound."""
        return tuple(kernel for kernel in self.kernels if kernel.flops is None)

    @property
    def blocking(self) -> tuple[Collective, ...]:
        """Collectives in loops that are not asynchronous, so that nothing overlaps with them."""
        return tuple(one for one in self.collectives if one.loops and not one.asynchronous)

    def of_kind(self, *kinds: str) -> tuple[Collective, ...]:
        """The collectives of these kinds, or all if none is given."""
        return tuple(one for one in self.collectives if not kinds or one.kind in kinds)

    def moved_bytes(self, *kinds: str) -> float:
        """Bytes that a device sends per step in collectives of these kinds, or all; see collectives.py."""
        return sum(one.executions * one.moved_bytes for one in self.of_kind(*kinds))

    def result_bytes(self, *kinds: str) -> int:
        """Bytes of the results on a device of collectives of these kinds, or all, summed over a step."""
        return sum(one.executions * one.result_bytes for one in self.of_kind(*kinds))


def read(compiled: jax.stages.Compiled | str, rounds: int = 1) -> Program:
    """Analyses a compiled program, or its optimized HLO text.

    Of a conditional, only the branch with the most FLOPs counts; with equal FLOPs, the one that moves the most bytes.

    Args:
      rounds: assumed trip count of loops whose count depends on run-time values.

    Raises:
      ValueError: if the text is not optimized HLO, or is truncated.
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text() or ""
    module = Module.parse(text)
    tally = _measure(module, Scope(module.entry), _Place(unknown=rounds))
    return Program(
        devices=module.devices,
        flops=tally.flops,
        collectives=tuple(tally.collectives),
        loops=tuple(tally.loops),
        kernels=tuple(tally.kernels),
        cycles=tally.cycles if "estimated_cycles" in text else None,
        memory=None if isinstance(compiled, str) else Memory.of(compiled),
    )


@dataclasses.dataclass(frozen=True)
class _Place:
    """The context in which a computation is called."""

    unknown: int
    """Assumed value of unknown trip counts."""
    executions: int = 1
    loops: tuple[str, ...] = ()
    asynchronous: bool = False
    fused: bool = False


@dataclasses.dataclass
class _Tally:
    """Accumulated counts."""

    flops: int = 0
    cycles: int = 0
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    loops: list[Loop] = dataclasses.field(default_factory=list)
    kernels: list[CustomCall] = dataclasses.field(default_factory=list)

    def add(self, other: Self) -> None:
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @property
    def weight(self) -> tuple[float, float]:
        return self.flops, sum(one.executions * one.moved_bytes for one in self.collectives)


def _measure(module: Module, scope: Scope, place: _Place) -> _Tally:
    """Counts of a computation, including all that it calls."""
    tally = _Tally()
    for operation in scope.computation.operations.values():
        if not place.fused:
            # The estimate of a fusion includes its parts.
            tally.cycles += place.executions * int(operation.attribute(r'"estimated_cycles":"(\d+)"') or 0)
        if (kind := kind_of(operation)) is not None:
            tally.collectives += _collective(module, scope, place, operation, kind)
        elif operation.opcode in products.OPCODES:
            (left,), (right,) = scope.operand_arrays(operation)[:2]
            tally.flops += place.executions * products.flops(operation, left, right)
        elif operation.opcode == "custom-call" and (counted := _library_flops(scope, operation)) is not None:
            tally.flops += place.executions * counted
        elif operation.opcode == "custom-call" or operation.opcode in _UNDESCRIBED:
            tally.kernels += _kernel(place, operation)
        else:
            tally.add(_called(module, scope, place, operation))
    return tally


def _collective(module: Module, scope: Scope, place: _Place, operation: Operation, kind: str) -> list[Collective]:
    """The collective that an operation runs or starts; empty if it only continues one, or its group has one device."""
    # The TPU compiler repeats an asynchronous collective in every fusion that runs between its start and its end. It is
    # started by the fusion whose result is passed to a custom call AsyncCollectiveStart.
    marks = scope.computation.operations.values()
    started = any(operation.name in mark.operands and _target(mark) == _ASYNC_START for mark in marks)
    if not started and "async_collective_fusion_config" in operation.attributes:
        return []
    group = group_size(operation, module.devices)
    # GPU compilers annotate a start that waits for its end immediately.
    apart = operation.opcode.endswith("-start") and '"is_sync":true' not in operation.attributes
    found = Collective(
        kind=kind,
        name=operation.name,
        group=group,
        operand_bytes=operand_bytes(kind, scope.operand_arrays(operation)),
        executions=place.executions,
        loops=place.loops,
        asynchronous=apart or started or place.asynchronous,
    )
    return [found] if group > 1 else []


def _library_flops(scope: Scope, operation: Operation) -> int | None:
    return products.library_flops(_target(operation), operation, scope.operand_arrays(operation))


def _kernel(place: _Place, operation: Operation) -> list[CustomCall]:
    target = _target(operation) or operation.opcode
    noted = operation.attribute(r'"cost_estimate":\{[^}]*"flops":"?(\d+)')
    kernel = CustomCall(operation.name, target, int(noted) if noted else None, place.executions)
    return [] if target in _MARKS else [kernel]


def _target(operation: Operation) -> str | None:
    """The target of a custom call."""
    return operation.attribute(r', custom_call_target="([^"]*)"')


def _called(module: Module, scope: Scope, place: _Place, operation: Operation) -> _Tally:
    """Counts of the computations that an operation calls. Scalar computations, such as those of reductions and sorts,
    are ignored."""

    def inside(name: str, **changes: Any) -> _Tally:
        called = Scope(module.computations[name], scope, operation)
        return _measure(module, called, dataclasses.replace(place, **changes))

    match operation.opcode:
        case "while":
            rounds = trip_count(module, scope, operation)
            executions = place.executions * (place.unknown if rounds is None else rounds)
            loop = Loop(operation.name, rounds, executions, place.loops)
            (body,), (condition,) = operation.called("body"), operation.called("condition")
            within = (*place.loops, loop.name)
            tally = inside(body, executions=loop.executions, loops=within)
            # The condition runs once more often than the body.
            tally.add(inside(condition, executions=loop.executions + place.executions, loops=within))
            tally.loops.insert(0, loop)
            return tally
        case "conditional":
            branches = operation.called("true_computation", "false_computation", "branch_computations")
            return max(map(inside, branches), key=lambda tally: tally.weight)
        case "fusion":
            (parts,) = operation.called("calls")
            tally = inside(parts, fused=True)
            # The TPU compiler represents a reduce-scatter as a fusion of an all-reduce and slices of its result.
            if parts.startswith("all-reduce-scatter"):
                tally.collectives = [dataclasses.replace(one, kind="reduce-scatter") for one in tally.collectives]
            return tally
        case "call":
            (callee,) = operation.called("to_apply")
            return inside(callee)
        case "async-start" | "custom-call-start":
            # The second opcode starts a collective on a SparseCore.
            (callee,) = operation.called("calls", "called_computations")
            return inside(callee, asynchronous=True)
    return _Tally()

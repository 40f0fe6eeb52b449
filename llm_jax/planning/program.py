"""What one step of a compiled program does on one device, read from the compiler's own text.

Everything is multiplied by the rounds of the loops it stands in. `cost_analysis()`, which is the compiler's own sum,
counts the body of a loop once and is not used.
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
"""Custom calls by which the TPU compiler marks or reserves something; they compute nothing."""
_UNDESCRIBED = frozenset({"ragged-dot", "scaled-dot"})
"""Matrix products whose FLOPs do not follow from their shapes alone."""


@dataclasses.dataclass(frozen=True)
class Loop:
    """A `while` loop."""

    name: str
    rounds: int | None
    """Rounds of the body each time; None where they depend on what is computed."""
    executions: int
    """Rounds of the body in a step, those of the loops around it multiplied in; for an unknown number stands that which
    `read` was told."""
    loops: tuple[str, ...]
    """The loops it stands in, the outermost first."""


@dataclasses.dataclass(frozen=True)
class CustomCall:
    """Work that the program's text does not describe: a custom call that is no matrix product of a known library."""

    name: str
    target: str
    """Function that is called, or the operation's own name."""
    flops: int | None
    """FLOPs of one execution as noted by the kernel's author (`cost_estimate`); None if they are not."""
    executions: int
    """How often it runs in a step."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device as the compiler has laid them out (`Compiled.memory_analysis`)."""

    arguments: int
    outputs: int
    aliased: int
    """Of the outputs, those that take the place of donated arguments."""
    temporary: int
    code: int
    peak: int
    """The most in use at once, by the compiler's own figure: not one to compare between compilers. That for CPUs leaves
    out what is temporary; for small programs on v5e it exceeds all the others together."""
    host: int
    """Temporary bytes in the host's memory."""

    @property
    def held(self) -> int:
        """The room that the program takes: what to hold against the memory of a chip."""
        return self.arguments + self.outputs - self.aliased + self.temporary + self.code

    @classmethod
    def of(cls, compiled: jax.stages.Compiled) -> Self | None:
        """Of a compiled program; None if its compiler does not say."""
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
    """FLOPs of matrix products, library calls included, those of `kernels` excluded: see `uncounted`."""
    collectives: tuple[Collective, ...]
    """Those among two devices or more, in the order of the program."""
    loops: tuple[Loop, ...]
    kernels: tuple[CustomCall, ...]
    cycles: int | None
    """Sum of the TPU compiler's estimates over operations, without transfers between devices and without kernels: a
    figure to rank programs by. None for other compilers, which make none."""
    memory: Memory | None
    """None if the program was read from text."""

    @property
    def exact(self) -> bool:
        """Whether the rounds of all loops are known; otherwise the figures count as many of some as `read` was told."""
        return all(loop.rounds is not None for loop in self.loops)

    @property
    def uncounted(self) -> tuple[CustomCall, ...]:
        """Kernels whose FLOPs nothing notes. Where there are some, `flops` is a lower bound."""
        return tuple(kernel for kernel in self.kernels if kernel.flops is None)

    @property
    def blocking(self) -> tuple[Collective, ...]:
        """Collectives in loops that are not asynchronous: nothing can hide them."""
        return tuple(one for one in self.collectives if one.loops and not one.asynchronous)

    def of_kind(self, *kinds: str) -> tuple[Collective, ...]:
        """The collectives of some kinds; of all if none is named."""
        return tuple(one for one in self.collectives if not kinds or one.kind in kinds)

    def moved_bytes(self, *kinds: str) -> float:
        """Bytes that a device sends in a step by the collectives of some kinds, or all; see collectives.py."""
        return sum(one.executions * one.moved_bytes for one in self.of_kind(*kinds))

    def result_bytes(self, *kinds: str) -> int:
        """Bytes that a device holds of the results of some kinds, or all, summed over a step."""
        return sum(one.executions * one.result_bytes for one in self.of_kind(*kinds))


def read(compiled: jax.stages.Compiled | str, rounds: int = 1) -> Program:
    """The figures of a compiled program, or of its optimized HLO text.

    Of a conditional, the branch with the most FLOPs counts, then that which moves the most bytes.

    Args:
      rounds: what is taken for the rounds of a loop that depend on what is computed.

    Raises:
      ValueError: if the text is no optimized HLO, or is cut.
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
    """Where a computation is called from."""

    unknown: int
    """What is taken for rounds that are not known."""
    executions: int = 1
    loops: tuple[str, ...] = ()
    asynchronous: bool = False
    fused: bool = False


@dataclasses.dataclass
class _Tally:
    """What has been found."""

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
    """Everything that a computation does, with all it calls."""
    tally = _Tally()
    for operation in scope.computation.operations.values():
        if not place.fused:
            # A fusion's estimate covers its parts.
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
    """The collective that an operation does or starts; none if it only goes on with one, or has no partner."""
    # Between its start and its end the TPU compiler writes an asynchronous collective into every fusion that runs
    # meanwhile; only that fusion starts it which hands it to a custom call of that name.
    marks = scope.computation.operations.values()
    started = any(operation.name in mark.operands and _target(mark) == _ASYNC_START for mark in marks)
    if not started and "async_collective_fusion_config" in operation.attributes:
        return []
    group = group_size(operation, module.devices)
    # GPU compilers note where they let a start wait for its end at once.
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
    """What a custom call calls."""
    return operation.attribute(r', custom_call_target="([^"]*)"')


def _called(module: Module, scope: Scope, place: _Place, operation: Operation) -> _Tally:
    """What the computations do that an operation calls. Those that it applies to single numbers (a reduction's, a
    sort's) hold nothing of interest."""

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
            # The condition runs once more than the body.
            tally.add(inside(condition, executions=loop.executions + place.executions, loops=within))
            tally.loops.insert(0, loop)
            return tally
        case "conditional":
            branches = operation.called("true_computation", "false_computation", "branch_computations")
            return max(map(inside, branches), key=lambda tally: tally.weight)
        case "fusion":
            (parts,) = operation.called("calls")
            tally = inside(parts, fused=True)
            # The TPU compiler writes a reduce-scatter as a fusion of an all-reduce and the slices that are kept of it.
            if parts.startswith("all-reduce-scatter"):
                tally.collectives = [dataclasses.replace(one, kind="reduce-scatter") for one in tally.collectives]
            return tally
        case "call":
            (callee,) = operation.called("to_apply")
            return inside(callee)
        case "async-start" | "custom-call-start":
            # The second is how a collective is handed to a SparseCore.
            (callee,) = operation.called("calls", "called_computations")
            return inside(callee, asynchronous=True)
    return _Tally()

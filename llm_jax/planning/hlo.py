"""Parser of XLA's optimized HLO, as printed by `jax.stages.Compiled.as_text()`.

A module is a set of computations, and a computation is a list of operations. An operation is one line, or several:
`%name = type opcode(%operands), attribute=value, ...`. Operations call computations: a fusion its parts, a loop its
body and its condition. Their semantics are documented at https://openxla.org/xla/operation_semantics.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Self

from llm_jax.core.checks import check, given

_HEAD = re.compile(r"(ENTRY )?%([\w.\-]+) \(.*\{\s*$")
_END = re.compile(r"\}(?!\})")
"""End of a computation. Descriptions of kernels are separate lines within an operation and end with more braces."""
_OPERATION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = ")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\]")
# Bits of the types whose names do not contain them.
_BITS = {"pred": 8, "token": 0, "opaque": 0}
_PASSING = frozenset({"copy", "copy-start", "copy-done", "bitcast", "convert", "reshape", "opt-barrier"})
"""Operations whose value is that of their operand, possibly in another location, dtype or shape."""


@dataclasses.dataclass(frozen=True)
class Array:
    """The type of an array: XLA's name of the element type, and the shape. For a bounded dynamic size it has the
    bound."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of the elements, without padding; types smaller than a byte are packed."""
        bits = _BITS[self.dtype] if self.dtype in _BITS else int(re.findall(r"\d+", self.dtype)[0])
        return -(-bits * math.prod(self.shape) // 8)


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation; `argument` is the text in its parentheses and `attributes` what follows them."""

    name: str
    opcode: str
    type: str
    argument: str
    attributes: str

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """All arrays of the result, with nested tuples flattened."""
        return tuple(
            Array(dtype, tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size))
            for dtype, sizes in _ARRAY.findall(self.type)
        )

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the operands."""
        return tuple(_NAME.findall(self.argument))

    def attribute(self, pattern: str) -> str | None:
        """The group of a regular expression's first match in the attributes; None without a match."""
        match = re.search(pattern, self.attributes)
        return match.group(1) if match else None

    @property
    def index(self) -> int:
        """Index of the element of a get-tuple-element. Raises ValueError for an operation without an index."""
        found = given(
            self.attribute(r"index=(\d+)"), f"{self.opcode} {self.name} has no index: the complete HLO text is required"
        )
        return int(found)

    def integers(self, key: str) -> tuple[int, ...]:
        """The numbers of an attribute `key={1,2}`; () if it is missing."""
        found = self.attribute(rf", {key}=\{{([\d,]*)\}}")
        return tuple(int(number) for number in found.split(",")) if found else ()

    def called(self, *keys: str) -> tuple[str, ...]:
        """Names of the computations in the attributes of these keys, `key=%name` or `key={%name, %name}`."""
        texts = [self.attribute(rf", {key}=(%[\w.\-]+|\{{[^}}]*\}})") or "" for key in keys]
        return tuple(_NAME.findall(" ".join(texts)))


@dataclasses.dataclass(frozen=True)
class Computation:
    """A list of operations by name, in the order of the schedule if there is one."""

    name: str
    operations: dict[str, Operation]
    root: Operation


@dataclasses.dataclass(frozen=True)
class Module:
    """A whole program for each of `devices` devices."""

    computations: dict[str, Computation]
    entry: Computation
    devices: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads HLO text.

        Raises:
          ValueError: if the text has no entry computation.
        """
        computations: dict[str, Computation] = {}
        entry = None
        for name, is_entry, lines in _blocks(text):
            computations[name] = _computation(name, lines)
            entry = computations[name] if is_entry else entry
        if entry is None:
            raise ValueError(
                f"the text of {len(text)} characters has no ENTRY computation: optimized HLO is required; pass the "
                "result of compiled.as_text()"
            )
        header = text[: text.find("\n")]
        counts = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", header)
        return cls(computations, entry, math.prod(map(int, counts)))


@dataclasses.dataclass(frozen=True)
class Scope:
    """A computation with its caller: the operation `caller` of the scope `outer`. The entry has no caller."""

    computation: Computation
    outer: "Scope | None" = None
    caller: Operation | None = None

    def operand(self, operation: Operation, index: int) -> Operation:
        """An operand of one of the computation's operations."""
        return self.computation.operations[operation.operands[index]]

    def operand_arrays(self, operation: Operation) -> tuple[tuple[Array, ...], ...]:
        """The arrays of each operand."""
        return tuple(self.computation.operations[name].arrays for name in operation.operands)


Value = tuple[Scope, Operation]
"""The value of an operation in a scope."""


def origin(module: Module, value: Value) -> Value:
    """The operation that computes a value, traced through copies, fusions, calls, tuples, and loop state that the loop
    does not change."""
    scope, operation = value
    if operation.opcode in _PASSING:
        return origin(module, (scope, scope.operand(operation, 0)))
    if operation.opcode in ("fusion", "call"):
        return origin(module, _inside(module, value))
    if operation.opcode == "get-tuple-element":
        index = operation.index
        return element(module, (scope, scope.operand(operation, 0)), index) or value
    if operation.opcode == "parameter" and scope.caller is not None and scope.caller.opcode != "while":
        return origin(module, _passed(scope, operation))
    return value


def element(module: Module, value: Value, index: int) -> Value | None:
    """The origin of an element of a tuple; None if it is unknown, for example if a loop changes it."""
    scope, operation = origin(module, value)
    if operation.opcode == "tuple":
        return origin(module, (scope, scope.operand(operation, index)))
    if operation.opcode != "parameter" or scope.caller is None:
        return None
    body = module.computations[scope.caller.called("body")[0]]
    return element(module, _passed(scope, operation), index) if _unchanged(body, index) else None


def _inside(module: Module, value: Value) -> Value:
    """The root of the computation that a fusion or a call calls."""
    scope, operation = value
    called = module.computations[operation.called("calls", "to_apply")[0]]
    return Scope(called, scope, operation), called.root


def _passed(scope: Scope, parameter: Operation) -> Value:
    """The caller's argument for a parameter."""
    if scope.outer is None or scope.caller is None:
        raise ValueError(
            f"parameter {parameter.name} belongs to {scope.computation.name}, which no operation calls: pass the "
            "complete HLO text"
        )
    return scope.outer, scope.outer.operand(scope.caller, int(parameter.argument))


def _unchanged(body: Computation, index: int) -> bool:
    """Whether the body of a loop returns an element of its state unchanged."""
    if body.root.opcode != "tuple":
        return False
    scope = Scope(body)
    operation = scope.operand(body.root, index)
    while operation.opcode in _PASSING:
        operation = scope.operand(operation, 0)
    return (
        operation.opcode == "get-tuple-element"
        and operation.index == index
        and scope.operand(operation, 0).opcode == "parameter"
    )


def _blocks(text: str) -> Iterator[tuple[str, bool, list[str]]]:
    """(name, whether it is the entry, lines of its operations) of every computation, each operation in one line."""
    name, is_entry, lines = None, False, []
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            name, is_entry, lines = head.group(2), bool(head.group(1)), []
        elif name is not None and _END.match(line):
            yield name, is_entry, lines
            name = None
        elif name is not None and _OPERATION.match(line):
            lines.append(line)
        elif name is not None and lines:
            lines[-1] += " " + line.strip()


def _computation(name: str, lines: list[str]) -> Computation:
    check(bool(lines), f"computation {name} has no operations: the HLO text is truncated; pass all of it")
    operations: dict[str, Operation] = {}
    root = None
    for line in lines:
        if head := _OPERATION.match(line):
            operation = _operation(head.group(2), line[head.end() :])
            operations[operation.name] = operation
            root = operation if head.group(1) else root
    return Computation(name, operations, root or list(operations.values())[-1])


def _operation(name: str, text: str) -> Operation:
    """The operation from the text after its '='."""
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    start = text.index("(", end)
    stop = _closing(text, start)
    return Operation(name, text[end:start].strip(), text[:end], text[start + 1 : stop - 1], text[stop:])


def _closing(text: str, start: int) -> int:
    """The index after the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(
        f"no parenthesis closes the one at {start} of {text[:200]!r}: the HLO text is truncated; pass all of it"
    )

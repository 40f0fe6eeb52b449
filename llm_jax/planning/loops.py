"""Trip counts of `while` loops.

The compilers for CPUs and GPUs annotate them. The compiler for TPUs does not. There the count follows from the
condition, which compares a counter with a limit, the counter's initial value and its step.
"""

from llm_jax.planning.hlo import Module, Operation, Scope, Value, element, origin

_MIRRORED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE"}


def trip_count(module: Module, scope: Scope, loop: Operation) -> int | None:
    """Number of iterations of a loop in `scope`; None if it depends on run-time values."""
    noted = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"\}')
    if noted is not None:
        return int(noted)
    test = _test(module, scope, loop)
    if test is None:
        return None
    index, direction, limit = test
    start = _constant(element(module, (scope, scope.operand(loop, 0)), index))
    step = _step(module, scope, loop, index)
    return None if start is None or not step else _rounds(start, step, direction, limit)


def _test(module: Module, scope: Scope, loop: Operation) -> tuple[int, str, int] | None:
    """(index of the counter in the loop state, direction, limit) of a condition 'counter direction limit'."""
    condition = module.computations[loop.called("condition")[0]]
    inner, compare = origin(module, (Scope(condition, scope, loop), condition.root))
    direction = compare.attribute(r"direction=(\w+)")
    if compare.opcode != "compare" or direction not in _MIRRORED:
        return None
    # The constant may be on either side.
    left, right = (origin(module, (inner, inner.operand(compare, side))) for side in (0, 1))
    if _constant(left) is not None:
        left, right, direction = right, left, _MIRRORED[direction]
    index, limit = _carried(left), _constant(right)
    return None if index is None or limit is None else (index, direction, limit)


def _step(module: Module, scope: Scope, loop: Operation, index: int) -> int | None:
    """The increment of the counter per iteration."""
    body = module.computations[loop.called("body")[0]]
    made = element(module, (Scope(body, scope, loop), body.root), index)
    if made is None or made[1].opcode not in ("add", "subtract"):
        return None
    inner, change = made
    left, right = (origin(module, (inner, inner.operand(change, side))) for side in (0, 1))
    if change.opcode == "add" and _constant(left) is not None:
        left, right = right, left
    by = _constant(right)
    if _carried(left) != index or by is None:
        return None
    return by if change.opcode == "add" else -by


def _rounds(start: int, step: int, direction: str, limit: int) -> int | None:
    """Number of iterations of `for (i = start; i direction limit; i += step)`; None if it does not end."""
    if direction == "NE":
        rounds, rest = divmod(limit - start, step)
        return rounds if rest == 0 and rounds >= 0 else None
    upwards = direction in ("LT", "LE")
    values = range(start, limit + {"LT": 0, "LE": 1, "GT": 0, "GE": -1}[direction], step)
    return len(values) if upwards == (step > 0) else None


def _constant(value: Value | None) -> int | None:
    """The integer of a constant; None if the value is not a constant integer."""
    if value is None or value[1].opcode != "constant":
        return None
    try:
        return int(value[1].argument)
    except ValueError:
        return None


def _carried(value: Value) -> int | None:
    """The index of a value in the loop state; None if it is not an element of it."""
    scope, operation = value
    if operation.opcode != "get-tuple-element" or scope.operand(operation, 0).opcode != "parameter":
        return None
    return operation.index

"""HLO as text, written by hand: the smallest whole programs around some operations."""

from collections.abc import Mapping
from types import MappingProxyType


def module(body: str, *others: str, devices: int = 1) -> str:
    """A program whose entry is `body`, one operation in a line, the last its result; `others` are computations."""
    return f"HloModule test, is_scheduled=true, num_partitions={devices}\n\n" + "\n".join(
        [*others, computation("main", body, "ENTRY ")]
    )


def computation(name: str, body: str, mark: str = "") -> str:
    """A computation of the operations in `body`, the last its result."""
    lines = [line.strip() for line in body.strip().splitlines()]
    return "\n".join([f"{mark}%{name} (p: f32[]) -> f32[] {{", *(f"  {line}" for line in lines[:-1])]) + (
        f"\n  ROOT {lines[-1]}\n}}\n"
    )


_WORK = "%a = f32[2,3] constant({...})\n%b = f32[3,5] constant({...})\n"
PRODUCT = _WORK + "%product = f32[2,5] dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
"""Operations of 60 FLOPs."""
PRODUCT_FLOPS = 2 * 2 * 3 * 5


def loop(
    compare: str = "direction=LT",
    start: int = 0,
    limit: int = 7,
    change: str = "add(%i, %step)",
    step: int = 1,
    noted: str = "",
    replaced: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """A program with a product in a loop over a counter; `replaced` changes its text further."""
    state = "(s32[], s32[])"
    text = module(
        f"""%zero = s32[] constant({start})
        %bound = s32[] constant({limit})
        %first = {state} tuple(%zero, %bound)
        %while.1 = {state} while(%first), condition=%condition, body=%body{noted}""",
        computation(
            "condition",
            f"""%carried = {state} parameter(0)
            %i = s32[] get-tuple-element(%carried), index=0
            %limit = s32[] constant({limit})
            %test = pred[] compare(%i, %limit), {compare}""",
        ),
        computation(
            "body",
            f"""%carried = {state} parameter(0)
            %i = s32[] get-tuple-element(%carried), index=0
            %bound = s32[] get-tuple-element(%carried), index=1
            {PRODUCT}
            %step = s32[] constant({step})
            %next = s32[] {change}
            %result = {state} tuple(%next, %bound)""",
        ),
    )
    for old, new in replaced.items():
        if old not in text:
            raise ValueError(f"{old!r} is not in the text")
        text = text.replace(old, new)
    return text

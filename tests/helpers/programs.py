"""What a traced program computes."""

from collections.abc import Iterator

import jax
from jax.extend import core


def narrow_sums(program: core.Jaxpr) -> set[str]:
    """Sums over elements of an array that are rounded to a type of less than 32 bits at every step. Those of a product
    of matrices are not among them: processors take them in float32."""
    found = set()
    for equation in _equations(program):
        name, (first, *_), (out, *_) = equation.primitive.name, equation.invars, equation.outvars
        adds = "scatter" in name and "add" in name
        adds |= name in ("reduce_sum", "reduce_window_sum", "cumsum", "reduce") and first.aval.size != out.aval.size
        if adds and out.aval.dtype.itemsize < 4:
            found.add(f"{name} {first.aval.str_short()} -> {out.aval.str_short()}")
    return found


def _equations(program: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """All operations, those of loops, branches and functions included."""
    for equation in program.eqns:
        if equation.invars and equation.outvars:
            yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(value):
                yield from _equations(getattr(value, "jaxpr", value))


def _is_program(value: object) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)

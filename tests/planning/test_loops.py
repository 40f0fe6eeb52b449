"""Rounds of loops, from every form of condition and counter that compilers write."""

import jax
import jax.numpy as jnp
import pytest

from llm_jax.planning.hlo import Module, Scope
from llm_jax.planning.loops import trip_count
from llm_jax.planning.program import read
from tests.planning.snippets import PRODUCT, PRODUCT_FLOPS, computation, loop


def _rounds(text: str) -> int | None:
    module = Module.parse(text)
    return trip_count(module, Scope(module.entry), module.entry.operations["while.1"])


@pytest.mark.parametrize(
    ("text", "rounds"),
    [
        (loop(), 7),
        (loop(noted=', backend_config={"known_trip_count":{"n":"9"}}'), 9),
        (loop("direction=LE"), 8),
        (loop(start=3), 4),
        (loop(start=8), 0),
        (loop(step=2), 4),
        (loop("direction=NE", step=7), 1),
        (loop("direction=GT", start=9, limit=0, step=-2), 5),
        (loop("direction=GE", start=9, limit=0, change="subtract(%i, %step)"), 10),
        (loop(change="add(%step, %i)", step=3), 3),
        (loop("direction=GT", replaced={"compare(%i, %limit)": "compare(%limit, %i)"}), 7),
    ],
)
def test_counters(text, rounds):
    assert _rounds(text) == rounds


@pytest.mark.parametrize(
    "text",
    [
        loop("direction=EQ"),
        loop("direction=NE", step=2),
        loop(step=-1),
        loop(step=0),
        loop(change="multiply(%i, %step)"),
        loop(change="add(%bound, %step)"),
        loop(replaced={"%zero = s32[] constant(0)": "%zero = s32[] parameter(0)"}),
        loop(replaced={"%test = pred[] compare(%i, %limit), direction=LT": "%test = pred[] custom-call(%i)"}),
    ],
)
def test_what_the_text_does_not_tell_is_not_guessed(text):
    assert _rounds(text) is None
    program = read(text)
    assert not program.exact and program.flops == PRODUCT_FLOPS
    assert read(text, rounds=3).flops == 3 * PRODUCT_FLOPS


def test_python_agrees_on_every_counter():
    for start in (-3, 0, 2):
        for limit in (-2, 0, 5):
            for step in (1, 2, 3):
                assert _rounds(loop(start=start, limit=limit, step=step)) == len(range(start, limit, step))


CARRIED = {"%limit = s32[] constant(7)": "%limit = s32[] get-tuple-element(%carried), index=1"}


def test_a_limit_carried_along_unchanged():
    assert _rounds(loop(replaced=CARRIED)) == 7
    copied = {"tuple(%next, %bound)": "tuple(%next, %again)", "%step = ": "%again = s32[] copy(%bound)\n  %step = "}
    assert _rounds(loop(replaced=CARRIED | copied)) == 7


@pytest.mark.parametrize("changed", ["%next", "%i"])
def test_a_limit_that_changes_is_not_known(changed):
    assert _rounds(loop(replaced=CARRIED | {"tuple(%next, %bound)": f"tuple(%next, {changed})"})) is None


def test_a_fused_condition_and_a_fused_counter():
    fusion = "%test = pred[] fusion(%limit, %i), kind=kLoop, calls=%compared"
    compared = computation(
        "compared",
        "%p0 = s32[] parameter(0)\n%p1 = s32[] parameter(1)\n%less = pred[] compare(%p1, %p0), direction=LT",
    )
    counted = computation(
        "counted",
        "%p0 = s32[] parameter(0)\n%one = s32[] constant(1)\n%more = s32[] add(%p0, %one)",
    )
    text = loop(
        change="fusion(%i), kind=kLoop, calls=%counted",
        replaced={"%test = pred[] compare(%i, %limit), direction=LT": fusion, "ENTRY": compared + counted + "ENTRY"},
    )
    assert _rounds(text) == 7


def _nested(x, outer, inner):
    def step(_, x):
        return jnp.tanh(x @ x)

    return jax.lax.fori_loop(0, outer, lambda _, x: jax.lax.fori_loop(0, inner, step, x), x @ x)


def test_nested_loops_multiply():
    text = jax.jit(_nested, static_argnums=(1, 2)).lower(jnp.ones((8, 8)), 3, 5).compile().as_text()
    program = read(text)
    assert program.flops == 2 * 8**3 * (1 + 3 * 5) and program.exact
    outer, inner = program.loops
    assert (outer.rounds, outer.executions, outer.loops) == (3, 3, ())
    assert (inner.rounds, inner.executions, inner.loops) == (5, 15, (outer.name,))
    # The same without what the compiler notes for us.
    assert '"known_trip_count"' in text
    assert read(text.replace('"known_trip_count"', '"a_count"')) == program


def test_a_loop_that_ends_when_its_values_say_so():
    def program(x):
        return jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: x @ x, x)

    found = read(jax.jit(program).lower(jnp.ones((8, 8))).compile())
    assert not found.exact and found.loops[0].rounds is None and found.flops == 2 * 8**3


def test_a_condition_runs_once_more_than_the_body():
    product = "%carried = (s32[], s32[]) parameter(0)\n  " + "\n  ".join(PRODUCT.splitlines())
    text = loop(
        replaced={
            "%condition (p: f32[]) -> f32[] {\n  %carried = (s32[], s32[]) parameter(0)": (
                "%condition (p: f32[]) -> f32[] {\n  " + product
            )
        }
    )
    assert read(text).flops == PRODUCT_FLOPS * (7 + 8)


def test_work_of_a_condition_is_as_compiled():
    def program(x):
        return jax.lax.while_loop(
            lambda c: (c[0] < 5) & ((c[1] @ c[1]).sum() < 1e9), lambda c: (c[0] + 1, c[1]), (0, x)
        )

    found = read(jax.jit(program).lower(jnp.ones((8, 8))).compile(), rounds=5)
    # What is asked before every round, and once more in the end.
    assert found.flops == 2 * 8**3 * 6

"""The figures of whole programs on one device: against arithmetic, against count.py, scanned against unrolled."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from llm_jax.models import count
from llm_jax.models.families.gpt2 import gpt2
from llm_jax.models.families.llama import llama
from llm_jax.models.stack import Execution
from llm_jax.models.transformer import Transformer
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.planning.program import CustomCall, Program, read
from llm_jax.train.state import initial_state
from llm_jax.train.step import StepConfig, train_step
from tests.helpers import compiler, tiny
from tests.planning.snippets import PRODUCT, PRODUCT_FLOPS, computation, loop, module

LAYERS, LENGTH, ROWS = 4, 8, 2
SIZES = {
    "gpt2": gpt2(LAYERS, heads=2, width=64, vocab_size=32, max_length=LENGTH),
    "llama": llama(LAYERS, heads=2, width=64, hidden=96, kv_heads=1, vocab_size=32, max_length=LENGTH),
}


@functools.cache
def _step(family: str, execution: Execution, accumulate: int = 1) -> Program:
    model, optimizer = Transformer(dataclasses.replace(SIZES[family], execution=execution)), optax.adamw(1e-2)
    state = jax.eval_shape(functools.partial(initial_state, model, optimizer, 0, False))
    step = train_step(model, CausalLMConfig(), optimizer, StepConfig(accumulate=accumulate), seed=0)
    return read(jax.jit(step, donate_argnums=0).lower(state, tiny.batch(ROWS, LENGTH)).compile(compiler.fused()))


SCANNED, UNROLLED = Execution(unroll=1), Execution(unroll=LAYERS)


@pytest.mark.parametrize("family", SIZES)
def test_a_scanned_step_has_the_flops_of_an_unrolled_one(family):
    scanned, unrolled = _step(family, SCANNED), _step(family, UNROLLED)
    assert [loop.rounds for loop in scanned.loops] == [LAYERS, LAYERS] and scanned.exact
    assert unrolled.loops == ()
    assert scanned.flops == unrolled.flops


@pytest.mark.parametrize("family", SIZES)
def test_flops_are_those_of_the_configuration(family):
    wanted = ROWS * LENGTH * count.training_flops(SIZES[family], LENGTH)
    # It counts the allowed half of the scores; this kernel computes all of them.
    assert 1 <= _step(family, SCANNED).flops / wanted < 1.03


def test_recomputation_is_seen():
    more = _step("llama", Execution(unroll=1, remat="full")).flops - _step("llama", SCANNED).flops
    headless = dataclasses.replace(SIZES["llama"], head=None)
    # No gradient needs the result of a block's last product.
    wanted = ROWS * LENGTH * (count.forward_flops(headless, LENGTH) - LAYERS * 2 * 96 * 64)
    assert more == pytest.approx(wanted, rel=0.05)


def test_microbatches_are_one_more_loop():
    halves = _step("llama", SCANNED, accumulate=2)
    assert halves.flops == _step("llama", SCANNED).flops
    assert {(loop.rounds, loop.executions) for loop in halves.loops} == {(2, 2), (LAYERS, 2 * LAYERS)}


def test_memory_of_a_step():
    memory = _step("llama", SCANNED).memory
    state = 4 * (3 * count.parameters(SIZES["llama"]) + 2)
    assert memory.aliased == state and memory.temporary > 0 and memory.host == 0
    assert 0 < memory.arguments - state < 4096 and 0 < memory.outputs - state < 4096
    assert memory.held == memory.arguments + memory.outputs - state + memory.temporary + memory.code


def test_memory_of_a_product():
    compiled = jax.jit(lambda x: x @ x).lower(jnp.zeros((64, 64))).compile()
    program = read(compiled)
    assert (program.memory.arguments, program.memory.outputs, program.memory.peak) == (2**14, 2**14, 2**15)
    assert program.flops == 2 * 64**3 and program.devices == 1 and program.cycles is None
    assert read(compiled.as_text()) == dataclasses.replace(program, memory=None)


def test_products_in_fusions_and_calls():
    parts = computation("parts", f"{PRODUCT}\n%more = f32[2,5] add(%product, %product)")
    callee = computation("callee", "%f = f32[2,5] fusion(), kind=kOutput, calls=%parts\n" + PRODUCT)
    assert read(module("%c = f32[2,5] call(), to_apply=%callee", parts, callee)).flops == 2 * PRODUCT_FLOPS


BRANCHES = ("branch_computations={%small, %large}", "true_computation=%large, false_computation=%small")


@pytest.mark.parametrize("branches", BRANCHES)
def test_of_branches_the_larger_counts(branches):
    small = computation("small", PRODUCT)
    large = computation("large", f"{PRODUCT}\n{PRODUCT.replace('%', '%again.')}")
    body = f"%i = s32[] parameter(0)\n%x = f32[] parameter(1)\n%c = f32[2,5] conditional(%i, %x, %x), {branches}"
    assert read(module(body, small, large)).flops == 2 * PRODUCT_FLOPS


def test_estimated_cycles():
    estimate = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'
    inner = computation("parts", f"%p = f32[] parameter(0)\n%n = f32[] negate(%p), {estimate % 1000}")
    fusion = f"%f = f32[] fusion(%limit), kind=kLoop, calls=%parts, {estimate % 30}\n  %step = "
    text = loop(replaced={"%step = ": fusion, "ENTRY": inner + "ENTRY"})
    outside = text.replace("%bound = s32[] constant(7)\n", f"%bound = s32[] constant(7), {estimate % 5}\n", 1)
    assert read(outside).cycles == 7 * 30 + 5


def test_kernels():
    noted = 'backend_config={"custom_call_config":{"cost_estimate":{"transcendentals":"0","flops":"1024"}}}'
    calls = f"""%k = f32[4] custom-call(%i), custom_call_target="tpu_custom_call", {noted}
      %unknown = f32[4] custom-call(%k, %k), custom_call_target="__cublas$gemm"
      %mark = f32[4] custom-call(), custom_call_target="AllocateBuffer"
      %step = """
    program = read(loop(replaced={"%step = ": calls}))
    assert program.kernels == (
        CustomCall("k", "tpu_custom_call", 1024, 7),
        CustomCall("unknown", "__cublas$gemm", None, 7),
    )
    assert program.flops == 7 * PRODUCT_FLOPS
    assert [kernel.name for kernel in program.uncounted] == ["unknown"]


def test_a_product_that_the_text_does_not_describe_is_reported():
    text = module(
        "%x = f32[8,4] parameter(0)\n%y = f32[2,4,5] parameter(1)\n%n = s32[2] parameter(2)\n"
        "%r = f32[8,5] ragged-dot(%x, %y, %n), lhs_contracting_dims={1}, rhs_contracting_dims={1}"
    )
    assert [kernel.target for kernel in read(text).uncounted] == ["ragged-dot"]

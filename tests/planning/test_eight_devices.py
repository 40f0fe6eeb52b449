"""What steps over eight devices exchange, by arithmetic, and by an instrument written apart from ours.

The programs are compiled_programs.py's. The instrument, aot_report.py, is no part of this project: it is looked for in
shared/tools of the checkout, of the folder around it, and of what LLM_JAX_SHARED names.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import pytest

from llm_jax.planning.program import Program, read
from tests.helpers import command_line, compiler

pytestmark = pytest.mark.slow

NAMES = ("gpt2, data", "gpt2, sharded", "gpt2, both", "llama, data", "llama, sharded", "textbook")
TPU_NAMES = ("v5e, sharded", "v5p, sharded")
SHARE = 7 / 8
"""(n - 1) / n of the textbook formulas."""


class Compiled:
    """Compiled texts, and the number of parameters of each."""

    def __init__(self, folder: Path, platform: str, environment: dict[str, str]):
        module = "tests.planning.compiled_programs"
        process = command_line.start(folder, platform, module=module, environment=environment)
        result = command_line.wait(process, seconds=600)
        assert result.code == 0, result.err[-3000:]
        self.parameters = json.loads(result.out.splitlines()[-1])
        self.texts = {name: (folder / f"{name}.hlo").read_text() for name in self.parameters}

    def program(self, name: str) -> Program:
        return read(self.texts[name])


@pytest.fixture(scope="module")
def cpu(tmp_path_factory):
    return Compiled(tmp_path_factory.mktemp("cpu"), "cpu", compiler.devices(8))


@pytest.fixture(scope="module")
def tpu(tmp_path_factory):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: nothing compiles for TPUs")
    flags = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    flags |= {"XLA_FLAGS": ""}
    return Compiled(tmp_path_factory.mktemp("tpu"), "tpu", flags)


@pytest.fixture(scope="module")
def instrument() -> ModuleType:
    """The other reader."""
    places = [command_line.ROOT / "shared", command_line.ROOT.parent / "shared"]
    if "LLM_JAX_SHARED" in os.environ:
        places.insert(0, Path(os.environ["LLM_JAX_SHARED"]))
    files = [place / "tools" / "aot_report.py" for place in places]
    found = next((file for file in files if file.exists()), None)
    if found is None:
        pytest.skip(f"no aot_report.py in {', '.join(str(file.parent) for file in files)}: set LLM_JAX_SHARED")
    spec = importlib.util.spec_from_file_location("aot_report", found)
    module = sys.modules["aot_report"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_data_parallelism_reduces_the_gradients_once(cpu):
    program, size = cpu.program("llama, data"), 4 * cpu.parameters["llama, data"]
    assert {one.kind for one in program.collectives} == {"all-reduce"} and program.devices == 8
    assert program.result_bytes() == pytest.approx(size, rel=0.01)
    assert program.moved_bytes() == pytest.approx(2 * SHARE * size, rel=0.01)
    assert {one.group for one in program.collectives} == {8}


def test_gathers_for_each_use_and_one_scatter_move_the_weights_three_times(cpu):
    program, size = cpu.program("textbook"), 4 * cpu.parameters["textbook"]
    assert {one.kind for one in program.collectives} == {"all-gather", "reduce-scatter"}
    assert program.moved_bytes("all-gather") == 2 * SHARE * size
    assert program.moved_bytes("reduce-scatter") == SHARE * size
    assert {(one.executions, len(one.loops)) for one in program.collectives} == {(5, 1)}


def test_full_sharding_gathers_twice(cpu):
    program, size = cpu.program("llama, sharded"), 4 * cpu.parameters["llama, sharded"]
    gathers = program.of_kind("all-gather")
    assert sum(one.executions * one.moved_bytes for one in gathers if one.loops) == pytest.approx(
        2 * SHARE * size, rel=0.1
    )
    # The compiler for CPUs has no reduce-scatter: it reduces everywhere, which moves twice as much, and keeps a slice.
    assert program.of_kind("reduce-scatter") == ()
    assert program.moved_bytes("all-reduce") == pytest.approx(2 * SHARE * size, rel=0.1)


@pytest.mark.parametrize("name", ["gpt2, sharded", "llama, sharded"])
def test_sharding_leaves_the_work_of_a_device_as_it_is(cpu, name):
    assert cpu.program(name).flops == cpu.program(name.replace("sharded", "data")).flops


def test_nothing_hides_what_cpus_exchange(cpu):
    program = cpu.program("llama, sharded")
    assert program.blocking == tuple(one for one in program.collectives if one.loops) != ()
    assert program.cycles is None


def test_full_sharding_on_tpus(tpu):
    program, size = tpu.program("v5p, sharded"), 2 * tpu.parameters["v5p, sharded"]  # gathered in bfloat16
    assert program.moved_bytes() == pytest.approx(3 * SHARE * size, rel=0.05)
    assert program.moved_bytes("reduce-scatter") == pytest.approx(SHARE * size, rel=0.1)
    assert {one.kind for one in program.blocking} <= {"all-reduce"}
    assert sum(one.operand_bytes for one in program.blocking) < 0.001 * size
    assert program.exact and program.cycles > 0 and program.kernels == ()


def test_asynchronous_gathers_of_v5e(tpu):
    gathers = [one for one in tpu.program("v5e, sharded").of_kind("all-gather") if one.loops]
    assert any(one.asynchronous for one in gathers)
    weights = 2 * 2 * 12 * 512**2  # both layers in bfloat16
    assert sum(one.executions * one.result_bytes for one in gathers) == pytest.approx(2 * weights, rel=0.05)


def _agrees(program: Program, text: str, instrument: ModuleType) -> None:
    """Every figure that both readers have, within 1 %."""
    other = instrument.report(None, text=text)
    close = {"rel": 0.01}
    assert program.devices == other["n_devices"]
    assert program.flops == pytest.approx(other["dot_flops"], **close)
    assert (program.cycles or 0) == pytest.approx(other["cycles"], **close)
    assert {one.name: one.rounds for one in program.loops} == {one["name"]: one["trips"] for one in other["loops"]}
    assert {one.kind for one in program.collectives} == set(other["collectives"])
    for kind, theirs in other["collectives"].items():
        ours = program.of_kind(kind)
        bytes_of = {
            "bytes": ours,
            "in_loop": [one for one in ours if one.loops],
            "sync": [one for one in ours if not one.asynchronous],
        }
        for figure, chosen in bytes_of.items():
            found = sum(one.executions * one.result_bytes for one in chosen)
            assert found == pytest.approx(theirs[figure], **close), (kind, figure)
        assert (len(ours), sum(one.executions for one in ours)) == (theirs["n_ops"], theirs["n_exec"])


@pytest.mark.parametrize("name", NAMES)
def test_the_instrument_agrees(cpu, instrument, name):
    _agrees(cpu.program(name), cpu.texts[name], instrument)


@pytest.mark.parametrize("name", TPU_NAMES)
def test_the_instrument_agrees_on_tpus(tpu, instrument, name):
    _agrees(tpu.program(name), tpu.texts[name], instrument)


def test_the_instrument_agrees_on_memory(instrument):
    def stack(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    compiled = jax.jit(stack, donate_argnums=0).lower(jnp.ones((64, 64)), jnp.ones((4, 64, 64))).compile()
    ours, theirs = read(compiled).memory, instrument.report(compiled)["hbm"]
    assert (ours.arguments, ours.outputs, ours.aliased) == (theirs["argument"], theirs["output"], theirs["alias"])
    assert (ours.temporary, ours.code, ours.peak) == (theirs["temp"], theirs["code"], theirs["peak"])
    assert (ours.held, ours.host) == (theirs["total"], theirs["host_temp"])

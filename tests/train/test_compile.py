"""Compiler options follow the device that is compiled for, not that of this machine."""

import types

import jax
import pytest

from llm_jax.core.dtypes import MIXED, Precision
from llm_jax.data.feed import global_batch
from llm_jax.models.transformer import Transformer
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.optim import AdamWConfig
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.rules import DataParallel, ShardingConfig
from llm_jax.train.compile import compiled, compiler_options
from llm_jax.train.programs import programs
from llm_jax.train.step import StepConfig
from tests.helpers.tiny import batch, tiny_gpt2

COMPILATION = "/jax/core/compile/backend_compile_duration"


def _device(platform, kind):
    return types.SimpleNamespace(platform=platform, device_kind=kind)


@pytest.mark.parametrize("kind", ["TPU v5", "TPU v6 lite"])
def test_pods_whose_chips_have_sparse_cores_use_them_for_collectives(kind):
    options = compiler_options(_device("tpu", kind), MIXED)
    assert options["xla_tpu_enable_sparse_core_collective_offload_all_reduce"] == "true"
    assert options == compiler_options(_device("tpu", kind), Precision())


@pytest.mark.parametrize("kind", ["TPU v5 lite", "NVIDIA H200", "cpu"])
def test_others_have_no_options_in_float32(kind):
    assert compiler_options(_device("tpu", kind), Precision()) == {}


def test_a_program_for_this_machine_runs():
    assert compiled(lambda x: x + 1, MIXED, donate_argnums=0)(1) == 2


@pytest.mark.parametrize("use_pmap", [False, True])
def test_an_update_that_was_compiled_to_begin_with_is_not_compiled_again(use_pmap):
    layout = Layout.of(ShardingConfig(MeshConfig(data=1), DataParallel(use_pmap)), jax.devices()[:1])
    model, optimizer = Transformer(tiny_gpt2(layers=1)), AdamWConfig(peak_lr=1e-3)
    made = programs(model, CausalLMConfig(), optimizer, StepConfig(), layout, 3, 0)
    rows, compilations = global_batch(batch(2), layout.rows), []

    def note(event: str, seconds: float, **_: str) -> None:
        # Not the reshapes by which pmap's rows are made.
        compilations.extend([seconds] if event == COMPILATION and seconds > 0.3 else [])

    with made.activated():
        state = made.fresh()
        jax.monitoring.register_event_duration_secs_listener(note)
        made.compile_step(rows)
        counts = [len(compilations)]
        for _ in range(3):
            state, report = made.step(state, rows)
            counts.append(len(compilations))
    assert counts == [counts[0]] * 4 and bool(report.finite) and int(state.step) == 3

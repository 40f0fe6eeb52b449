"""Compiler options follow the device that is compiled for, not that of this machine."""

import types

import pytest

from llm_jax.core.dtypes import MIXED, Precision
from llm_jax.train.compile import compiled, compiler_options


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

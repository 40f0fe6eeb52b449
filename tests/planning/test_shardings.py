"""Where parameters lie and what a device holds, for devices that there are not."""

import pytest
from jax.sharding import PartitionSpec

from llm_jax.core import trees
from llm_jax.models.transformer import Transformer
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.optim import AdamWConfig
from llm_jax.planning import shardings
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.rules import Combined, DataParallel, FullySharded, ShardingConfig, TensorParallel
from llm_jax.train.programs import programs
from llm_jax.train.step import StepConfig
from tests.helpers import command_line, tiny

COUNTERS = 8
"""Bytes of the counts of updates that Adam and the schedule keep on every device."""


def _made(strategy, ema=None, **mesh):
    layout = Layout.abstract(ShardingConfig(MeshConfig(**{"data": 1} | mesh), strategy), 8)
    model = Transformer(tiny.tiny_llama())
    return programs(model, CausalLMConfig(), AdamWConfig(peak_lr=1e-3), StepConfig(ema_decay=ema), layout, 10, 0)


def _norms(made) -> int:
    return sum(shard.bytes for shard in shardings.shards(made) if shard.name.endswith("scale"))


def test_data_parallel_holds_all_of_everything():
    made = _made(DataParallel(), ema=0.9, data=8)
    whole = trees.size_bytes(made.abstract_state.params)
    sums = shardings.totals(made)
    assert (sums.parameters, sums.gradients, sums.average) == (whole, whole, whole)
    assert sums.optimizer == 2 * whole + COUNTERS
    for shard in shardings.shards(made):
        assert shard.bytes == shard.device_bytes and shard.optimizer_bytes == 3 * shard.bytes


@pytest.mark.parametrize(("stage", "divided"), [(1, (0, 0, 1)), (2, (0, 1, 1)), (3, (1, 1, 1))])
def test_the_stages_of_zero_divide_optimizer_state_then_gradients_then_parameters(stage, divided):
    made = _made(FullySharded(stage=stage), fsdp=8)
    whole, norms = trees.size_bytes(made.abstract_state.params), _norms(made)
    share = norms + (whole - norms) // 8
    sums = shardings.totals(made)
    expected = [share if part else whole for part in divided]
    assert [sums.parameters, sums.gradients, (sums.optimizer - COUNTERS) // 2] == expected


def test_a_product_divides_by_both():
    made = _made(Combined(FullySharded(), TensorParallel()), fsdp=4, tensor=2)
    (query,) = [shard for shard in shardings.shards(made) if shard.name.endswith("query/kernel")]
    assert query.logical_axes == ("layers", "embed", "heads", "head_dim")
    assert query.spec == PartitionSpec(None, ("fsdp", "expert"), ("tensor",), None)
    assert query.device_bytes * 8 == query.bytes and query.optimizer_bytes == 2 * query.device_bytes


def test_the_command_shows_a_layout_over_devices_that_there_are_not():
    outcome = command_line.llm_jax("shardings", "experiments/quickstart.py", "--devices", 16)
    assert outcome.code == 0 and "DataParallel over data 16" in outcome.said
    assert "stack/segment_0/block_0/mixer/query/kernel" in outcome.said


def test_the_command_says_what_does_not_divide(tmp_path):
    file = tmp_path / "uneven.py"
    file.write_text(
        "import dataclasses\nfrom experiments import quickstart\nfrom llm_jax.sharding.mesh import MeshConfig\n"
        "from llm_jax.sharding.rules import FullySharded, ShardingConfig\n\n\ndef experiment():\n"
        "    sharding = ShardingConfig(MeshConfig(data=1, fsdp=3), FullySharded())\n"
        "    return dataclasses.replace(quickstart.experiment(), sharding=sharding)\n"
    )
    outcome = command_line.llm_jax("shardings", file, "--devices", 3)
    assert outcome.code == 1
    assert "axis 'embed' has size 128, which must be divisible by the 3 devices of mesh axes ('fsdp',)" in outcome.said


def test_what_lies_in_the_hosts_memory_is_not_the_devices():
    layout = Layout.abstract(ShardingConfig(MeshConfig(data=1, fsdp=8), FullySharded(), offload=True), 8)
    model = Transformer(tiny.tiny_llama())
    made = programs(model, CausalLMConfig(), AdamWConfig(peak_lr=1e-3), StepConfig(), layout, 10, 0)
    assert shardings.totals(made).optimizer == 0 < shardings.totals(made).parameters


def test_a_layout_by_pmap_needs_no_devices_either():
    assert shardings.totals(_made(DataParallel(use_pmap=True), data=8)) == shardings.totals(
        _made(DataParallel(), data=8)
    )

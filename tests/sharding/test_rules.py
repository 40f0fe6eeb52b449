"""Every strategy has an answer for every word, and names only axes of the mesh."""

import dataclasses

import pytest

from llm_jax.core import config_text
from llm_jax.sharding import axes
from llm_jax.sharding.mesh import Axes, MeshConfig
from llm_jax.sharding.pipeline_schedule import PipelineSchedule
from llm_jax.sharding.rules import (
    AllToAll,
    Combined,
    ContextParallel,
    DataParallel,
    ExpertParallel,
    FullySharded,
    PipelineParallel,
    Ring,
    ShardingConfig,
    TensorParallel,
    placed,
)

STRATEGIES = [
    DataParallel(),
    ExpertParallel(),
    PipelineParallel(4),
    FullySharded(),
    FullySharded(stage=1),
    TensorParallel(),
    TensorParallel(sequence=True),
    ContextParallel(AllToAll()),
    Combined(TensorParallel(sequence=True), ContextParallel()),
    Combined(FullySharded(), TensorParallel()),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_a_table_covers_exactly_the_words(strategy):
    table = strategy.table()
    assert set(table) == set(axes.LOGICAL_AXES)
    known = {field.name for field in dataclasses.fields(Axes)}
    for value in table.values():
        assert value is None or {value} <= known or set(value) <= known


def test_fsdp_divides_weights_and_data_parallel_none():
    weights = set(axes.LOGICAL_AXES) - {axes.BATCH, axes.LENGTH, axes.WIDTH, axes.STREAM}
    assert not any(DataParallel().table()[word] for word in weights)
    assert FullySharded().table()[axes.EMBED] == ("fsdp", "expert")
    assert FullySharded().table()[axes.WIDTH] is None  # of activations, only the batch is divided


def test_every_axis_of_replicas_divides_the_batch():
    for strategy in STRATEGIES:
        stages = {"stage"} if isinstance(strategy, PipelineParallel) else set()
        assert set(strategy.table()[axes.BATCH]) == {"data", "fsdp", "expert"} | stages


def test_both_divide_what_either_divides():
    both, one, other = (s.table() for s in (STRATEGIES[-1], FullySharded(), TensorParallel()))
    assert {word for word in both if both[word]} == {word for word in both if one[word] or other[word]}
    assert both[axes.EMBED] == ("fsdp", "expert") and both[axes.HEADS] == both[axes.VOCAB] == ("tensor",)


def test_a_mesh_axis_divides_the_first_axis_of_an_array_that_names_it():
    table = Combined(FullySharded(), ExpertParallel()).table()
    assert placed(table, (axes.EXPERTS, axes.EMBED, axes.MLP)) == [("expert",), ("fsdp",), ()]
    assert placed(table, (axes.EMBED, axes.MLP)) == [("fsdp", "expert"), ()]


def test_rows_lie_over_the_devices_of_both_context_and_tensor_in_the_order_of_the_mesh():
    table = Combined(TensorParallel(sequence=True), ContextParallel()).table()
    assert table[axes.STREAM] == ("context", "tensor") and table[axes.LENGTH] == ("context",)
    assert Combined(ContextParallel(), TensorParallel()).table()[axes.STREAM] == ("context",)


def test_a_block_of_a_ring_holds_at_least_one_token():
    with pytest.raises(ValueError, match="block is 0"):
        Ring(block=0)


def test_a_product_is_of_different_kinds():
    with pytest.raises(ValueError, match="strategy has TensorParallel twice: combine strategies of different kinds"):
        Combined(Combined(TensorParallel(), FullySharded()), TensorParallel(sequence=True))
    with pytest.raises(ValueError, match=r"jax.pmap only divides the batch; set use_pmap to False"):
        Combined(FullySharded(), DataParallel(use_pmap=True))


@pytest.mark.parametrize(("stage", "divided"), [(1, (0, 0, 1)), (2, (0, 1, 1)), (3, (1, 1, 1))])
def test_the_stages_of_zero_divide_more_and_more(stage, divided):
    strategy = FullySharded(stage=stage)
    tables = (strategy.table(), strategy.gradients(), strategy.optimizer())
    assert tuple(table[axes.EMBED] == ("fsdp", "expert") for table in tables) == divided
    with_heads = Combined(TensorParallel(), strategy)
    for table, other in zip(tables, (with_heads.table(), with_heads.gradients(), with_heads.optimizer()), strict=True):
        assert bool(other[axes.EMBED]) == bool(table[axes.EMBED]) and other[axes.HEADS] == ("tensor",)


def test_a_mesh_axis_that_nothing_is_divided_over_is_refused():
    with pytest.raises(ValueError, match="mesh.tensor is not 1 and strategy FullySharded does not shard over it"):
        ShardingConfig(MeshConfig(tensor=2), FullySharded())
    ShardingConfig(MeshConfig(tensor=2), TensorParallel())


def test_stages_divide_the_layers_and_what_lies_outside_of_them_by_rows():
    both = Combined(FullySharded(), PipelineParallel(4)).table()
    assert both[axes.LAYERS] == ("stage",) and both[axes.EMBED] == ("fsdp", "expert")
    assert both[axes.BATCH] == PipelineParallel(4).table()[axes.BATCH] == ("data", "fsdp", "stage", "expert")


def test_a_pipeline_needs_microbatches_in_groups_of_the_stages():
    strategy = Combined(FullySharded(), PipelineParallel(6, virtual_stages=2))
    with pytest.raises(ValueError, match="microbatches 6 and mesh.stage is 4.*multiple of 4"):
        ShardingConfig(MeshConfig(stage=4), strategy)
    assert ShardingConfig(MeshConfig(stage=3), strategy).schedule == PipelineSchedule(3, 6, 2)
    # Without stages it is data parallel; how many the rest of the devices are is not known here.
    for mesh in (MeshConfig(), MeshConfig(data=1, stage=-1)):
        assert ShardingConfig(mesh, strategy).schedule is None
    for bad in ({"microbatches": 0}, {"microbatches": 4, "virtual_stages": 0}):
        with pytest.raises(ValueError, match="is 0"):
            PipelineParallel(**bad)


def test_sharding_is_part_of_the_experiments_text():
    product = Combined(FullySharded(), ContextParallel(Ring(balanced=False)))
    stages = Combined(FullySharded(), PipelineParallel(4, virtual_stages=2))
    mesh = MeshConfig(data=2, fsdp=-1)
    for strategy in (FullySharded(), product, stages):
        other = ShardingConfig(mesh, strategy)
        assert config_text.parse(config_text.to_text(other)) == other
        assert config_text.diff(ShardingConfig(), other)


def test_pmap_does_not_compute_in_the_hosts_memory():
    with pytest.raises(ValueError, match="sharding.offload is True and strategy DataParallel.use_pmap=True.: jax.pmap"):
        ShardingConfig(strategy=DataParallel(use_pmap=True), offload=True)

"""Every strategy has an answer for every word, and names only axes of the mesh."""

import dataclasses

import pytest

from llm_jax.core import config
from llm_jax.sharding import axes
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.rules import DataParallel, FullySharded, ShardingConfig

STRATEGIES = [DataParallel(), FullySharded()]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_a_table_covers_exactly_the_words(strategy):
    table = strategy.table()
    assert set(table) == set(axes.WORDS)
    known = {field.name for field in dataclasses.fields(MeshConfig)}
    for value in table.values():
        assert value is None or {value} <= known or set(value) <= known


def test_fsdp_divides_weights_and_data_parallel_none():
    weights = set(axes.WORDS) - {axes.BATCH, axes.LENGTH, axes.WIDTH}
    assert not any(DataParallel().table()[word] for word in weights)
    assert FullySharded().table()[axes.EMBED] == "fsdp"
    assert FullySharded().table()[axes.WIDTH] is None  # of activations, only the batch is divided


def test_every_axis_of_the_mesh_divides_the_batch():
    for strategy in STRATEGIES:
        assert set(strategy.table()[axes.BATCH]) == {field.name for field in dataclasses.fields(MeshConfig)}


def test_sharding_is_part_of_the_experiments_text():
    default, other = ShardingConfig(), ShardingConfig(MeshConfig(data=2, fsdp=-1), FullySharded())
    assert config.parse(config.to_text(other)) == other
    assert config.diff(default, other)

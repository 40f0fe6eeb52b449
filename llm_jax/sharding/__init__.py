"""Sharding of arrays over devices: a mesh and a strategy. Layers use logical axes only and do not refer to devices."""

from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.partition import Layout
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
)

__all__ = [
    "AllToAll",
    "Combined",
    "ContextParallel",
    "DataParallel",
    "ExpertParallel",
    "FullySharded",
    "Layout",
    "MeshConfig",
    "PipelineParallel",
    "Ring",
    "ShardingConfig",
    "TensorParallel",
]

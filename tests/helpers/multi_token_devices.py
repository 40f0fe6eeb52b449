"""A program, to be run with eight fake devices: trains models that predict several tokens in several layouts, and
prints JSON facts.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.helpers.multi_token_devices
"""

import dataclasses
import json
from typing import Any

import jax
import numpy as np

from llm_jax.core.metrics import means
from llm_jax.models.config import TransformerConfig
from llm_jax.models.multi_token_heads import ChainedHeads, ParallelHeads
from llm_jax.models.transformer import Transformer
from llm_jax.objectives import MultiTokenConfig
from llm_jax.optim import AdamWConfig
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.rules import ShardingConfig
from llm_jax.train.programs import programs
from llm_jax.train.step import StepConfig
from tests.helpers import tiny
from tests.helpers.eight_devices import LAYOUTS

LLAMA = tiny.tiny_llama()
(TRUNK,) = LLAMA.segments
MODELS = {
    "chained": dataclasses.replace(LLAMA, multi_token=ChainedHeads(3)),
    "parallel": dataclasses.replace(
        LLAMA, segments=(TRUNK, dataclasses.replace(TRUNK, repeats=1)), multi_token=ParallelHeads(3)
    ),
}
STEPS = 2
PLACES = {"chained": ("one", "wide tensor and ring", "pipeline"), "parallel": ("one", "fsdp and tensor")}


def train(config: TransformerConfig, sharding: ShardingConfig) -> dict[str, Any]:
    """Metrics of STEPS updates, and sums of the parameters after them."""
    layout = Layout.of(sharding, jax.devices()[: 1 if sharding == LAYOUTS["one"] else 8])
    optimizer = AdamWConfig(peak_lr=1e-2, clip_norm=None, epsilon=1e-4)
    found = programs(Transformer(config), MultiTokenConfig(chunks=2), optimizer, StepConfig(), layout, STEPS, seed=0)
    batch = jax.device_put(tiny.batch(8), found.layout.rows)
    compiled, state, metrics = found.compile_step(batch), found.fresh(), []
    for _ in range(STEPS):
        state, report = compiled(state, batch)
        metrics.append(means(report.metrics))
    joint = jax.tree.leaves(state.params["multi_token"])[0]
    return {
        "metrics": metrics,
        "sums": [float(abs(np.asarray(leaf)).sum()) for leaf in jax.tree.leaves(state.params)],
        "shards": len({str(shard.index) for shard in joint.addressable_shards}),
    }


if __name__ == "__main__":
    print(json.dumps({name: {place: train(MODELS[name], LAYOUTS[place]) for place in PLACES[name]} for name in MODELS}))

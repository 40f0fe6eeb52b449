"""A program, to be run with eight fake devices: the biases that a layer's load has moved, in several layouts, as JSON.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.helpers.balanced_experts
"""

import dataclasses
import json

import jax
import numpy as np

from llm_jax.layers.ffn.balance import BiasUpdate, SequenceLoss
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.token_choice import SigmoidConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.transformer import Transformer
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.optim import AdamWConfig
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.rules import DataParallel, FullySharded, ShardingConfig
from llm_jax.train.programs import programs
from llm_jax.train.step import StepConfig
from tests.helpers import tiny

LAYOUTS = {
    "one": (ShardingConfig(MeshConfig(data=1), DataParallel()), 1),
    "mapped": (ShardingConfig(MeshConfig(data=8), DataParallel(mapped=True)), 1),
    "data": (ShardingConfig(MeshConfig(data=8), DataParallel()), 1),
    "fsdp": (ShardingConfig(MeshConfig(data=2, fsdp=4), FullySharded()), 2),
}
STEPS, RATE = 3, 0.02


def balanced(rate: float = RATE) -> TransformerConfig:
    """A decoder whose layers are of experts that a bias balances."""
    config = tiny.tiny_llama()
    block = config.segments[0].blocks[0]
    experts = MoEConfig(4, block.ffn, SigmoidConfig(2), balance=(BiasUpdate(rate), SequenceLoss()))
    segment = dataclasses.replace(config.segments[0], blocks=(dataclasses.replace(block, ffn=experts),))
    return dataclasses.replace(config, segments=(segment,))


def main() -> None:
    """Trains a few updates in each layout."""
    found = {}
    for name, (sharding, accumulate) in LAYOUTS.items():
        layout = Layout.of(sharding, jax.devices()[: 1 if name == "one" else 8])
        optimizer = AdamWConfig(peak_lr=1e-3, clip_norm=None)
        model = Transformer(balanced())
        made = programs(model, CausalLMConfig(), optimizer, StepConfig(accumulate), layout, STEPS, seed=0)
        with made.activated():
            state = made.begin(tiny.parameters(model))
            for step in range(STEPS):
                batch = jax.device_put(tiny.batch(16, seed=step), layout.rows)
                state, report = jax.block_until_ready(made.step(state, batch))
        tally = report.metrics["experts"].layers["stack/segment_0/block_0"]
        bias = state.params["stack"]["segment_0"]["block_0"]["ffn"]["router"]["bias"]
        found[name] = {"bias": np.asarray(bias).tolist(), "load": np.asarray(tally.load_E).tolist()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()

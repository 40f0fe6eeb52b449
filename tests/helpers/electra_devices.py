"""A program, to be run with eight fake devices: trains a generator and a discriminator in several layouts, and prints
JSON facts.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.helpers.electra_devices
"""

import json
from typing import Any

import jax
import numpy as np

from llm_jax.core import trees
from llm_jax.core.metrics import means
from llm_jax.models.build import build
from llm_jax.models.families.bert import electra
from llm_jax.objectives import MaskedLMConfig, ReplacedTokensConfig
from llm_jax.optim import AdamWConfig
from llm_jax.sharding.partition import Layout
from llm_jax.train.programs import programs
from llm_jax.train.step import StepConfig
from tests.helpers import packed_rows
from tests.helpers.eight_devices import LAYOUTS

LENGTH = 16
CONFIG = electra(1, 8, 32, share=0.5, narrow=16, vocab_size=32, max_length=LENGTH)
OBJECTIVE = ReplacedTokensConfig(MaskedLMConfig(masked=1.0, random=0.0, rate=0.25, chunks=2))
PLACES = ("one", "wide tensor and ring", "fsdp", "fsdp and tensor")
STEPS = 2


def train(place: str) -> dict[str, Any]:
    """Metrics of STEPS updates, and sums of the parameters after them."""
    layout = Layout.of(LAYOUTS[place], jax.devices()[: 1 if place == "one" else 8])
    optimizer = AdamWConfig(peak_lr=1e-2, clip_norm=None, epsilon=1e-4)
    found = programs(build(CONFIG), OBJECTIVE, optimizer, StepConfig(), layout, STEPS, seed=0)
    examples = OBJECTIVE.examples(CONFIG, None, LENGTH)
    rows = [
        examples.row(packed_rows.row([5, 9], 3, words=30, seed=seed), np.random.default_rng(seed)) for seed in range(8)
    ]
    batch = jax.device_put(packed_rows.stacked(OBJECTIVE, rows), found.layout.rows)
    compiled, state, metrics = found.compile_step(batch), found.fresh(), []
    for _ in range(STEPS):
        state, report = compiled(state, batch)
        metrics.append(means(report.metrics))
    kernel = state.params["generator_head"]["transform"]["dense"]["kernel"]
    return {
        "metrics": metrics,
        # A bias of keys has no gradient but rounding.
        "sums": [
            float(abs(np.asarray(leaf)).sum())
            for name, leaf in trees.named_leaves(state.params)
            if not name.endswith("key/bias")
        ],
        "shards": len({str(shard.index) for shard in kernel.addressable_shards}),
    }


if __name__ == "__main__":
    print(json.dumps({place: train(place) for place in PLACES}))

"""A program, to be run with eight fake devices: trains tiny models in several layouts and prints JSON facts.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.helpers.eight_devices
"""

import json
import re
from typing import Any

import jax
import numpy as np

from llm_jax.core import garbage, trees
from llm_jax.models.config import TransformerConfig
from llm_jax.models.transformer import Transformer
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.optim import AdamWConfig
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.rules import (
    Combined,
    ContextParallel,
    DataParallel,
    FullySharded,
    PipelineParallel,
    Ring,
    ShardingConfig,
    TensorParallel,
)
from llm_jax.train.programs import Programs, programs
from llm_jax.train.state import TrainState
from llm_jax.train.step import StepConfig
from tests.helpers import tiny

LAYOUTS = {
    "one": ShardingConfig(MeshConfig(data=1), DataParallel()),
    "fsdp": ShardingConfig(MeshConfig(data=2, fsdp=4), FullySharded()),
    "wide tensor and ring": ShardingConfig(
        MeshConfig(data=1, context=2, tensor=4), Combined(ContextParallel(Ring()), TensorParallel())
    ),
    "fsdp and tensor": ShardingConfig(
        MeshConfig(data=2, fsdp=2, tensor=2), Combined(FullySharded(), TensorParallel(True))
    ),
    "pipeline": ShardingConfig(MeshConfig(data=2, fsdp=2, stage=2), Combined(FullySharded(), PipelineParallel(2))),
}
STEPS = 2


def made(config: TransformerConfig, sharding: ShardingConfig) -> Programs:
    """What training calls for a tiny model in one layout."""
    layout = Layout.of(sharding, jax.devices()[: 1 if sharding == LAYOUTS["one"] else 8])
    optimizer, update = AdamWConfig(peak_lr=1e-2, clip_norm=None), StepConfig(ema_decay=0.5)
    return programs(Transformer(config), CausalLMConfig(chunks=2), optimizer, update, layout, STEPS, seed=0)


def train(found: Programs) -> tuple[TrainState, dict[str, Any]]:
    """The state after STEPS updates, and facts about how it lay."""
    batch = jax.device_put(tiny.batch(8), found.layout.rows)
    compiled, state = found.compile_step(batch), found.fresh()
    facts = {
        "initial": [float(abs(np.asarray(leaf)).sum()) for leaf in jax.tree.leaves(state.params)],
        "gathered": _gathered(compiled.as_text()),
        "stacked": [sorted(leaf.shape) for leaf in jax.tree.leaves(state.params["stack"]) if leaf.ndim > 2],
    }
    losses = []
    for _ in range(STEPS):
        state, report = compiled(state, batch)
        losses.append(float(report.metrics["loss"].mean))
    mixer = state.params["stack"]["segment_0"]["block_0"]["mixer"]
    query = mixer["query"]["kernel"]
    facts |= {
        "key_values": _bytes([mixer["key"], mixer["value"]])["all"],
        "scores": np.asarray(continued(found, state.params)).tolist(),
        "losses": losses,
        "query_shards": len({str(shard.index) for shard in query.addressable_shards}),
        "parameters": _bytes(state.params),
        "optimizer": _bytes(state.opt_state),
        "average": _bytes(state.ema),
        "norms": _bytes([leaf for name, leaf in trees.named_leaves(state.params) if name.endswith("scale")])["all"],
    }
    return jax.device_get(state), facts


def continued(found: Programs, params: Any) -> jax.Array:
    """Scores [8, V] of the token after five, the last two of them read with a cache of the others."""
    tokens, model = tiny.tokens(8, 5), found.model

    def scores(params: Any, tokens: jax.Array) -> jax.Array:
        cache = model.allocate(8, 5)
        cache = model.apply({"params": params}, tokens[:, :3], cache=cache).cache
        return model.apply({"params": params}, tokens[:, 3:], cache=cache).logits_BTV[:, -1]

    with found.activated():
        return jax.jit(scores)(params, jax.device_put(tokens, found.layout.rows))


def _gathered(program: str) -> list[list[int]]:
    """Sizes, sorted, of the axes of every array that the compiled program gathers over devices."""
    shapes = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", program)
    return [sorted(map(int, shape.split(","))) for shape in shapes]


def _bytes(tree: Any) -> dict[str, int]:
    """Bytes of a tree as a whole, and the most that any one device holds of it."""
    held: dict[jax.Device, int] = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return {"all": trees.size_bytes(tree), "device": max(held.values())}


def _difference(left: Any, right: Any) -> float:
    """Largest difference between two trees, relative to the largest number of each leaf."""
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return max(float(np.abs(a - b).max() / (np.abs(b).max() + 1e-30)) for a, b in pairs)


def main() -> None:
    """Prints {layout: facts}; differences are against the layout of one device."""
    results, reference = {}, None
    for name, layout in LAYOUTS.items():
        state, facts = train(made(tiny.tiny_llama(), layout))
        reference = reference or state
        # Adam's first moment is a sum of gradients: it shows their size, which the updates hide.
        for part in ("params", "opt_state", "ema"):
            facts[f"{part}_difference"] = _difference(getattr(state, part), getattr(reference, part))
        results[name] = facts
    # Learned positions and a tied head are laid out in their own way; what the compiler says of them goes to stderr.
    made(tiny.tiny_gpt2(layers=1), LAYOUTS["fsdp"]).compile_step(tiny.batch(8))
    print(json.dumps(results))


if __name__ == "__main__":
    garbage.postpone()
    main()

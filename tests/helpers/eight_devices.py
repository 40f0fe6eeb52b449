"""A program, to be run with eight fake devices: trains a tiny LLaMA in several layouts and prints JSON facts.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.helpers.eight_devices
"""

import functools
import json
import re
from typing import Any

import jax
import numpy as np
import optax

from llm_jax.core import trees
from llm_jax.models.transformer import Transformer
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.sharding import partition
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.rules import DataParallel, FullySharded, Strategy
from llm_jax.train.state import TrainState, abstract_parameters, initial_state, state_shardings
from llm_jax.train.step import StepConfig, train_step
from tests.helpers import tiny

LAYOUTS = {
    "one": (MeshConfig(data=1), DataParallel(), 1),
    "data": (MeshConfig(data=8), DataParallel(), 8),
    "fsdp": (MeshConfig(data=2, fsdp=4), FullySharded(), 8),
}
STEPS = 2


def train(mesh_config: MeshConfig, strategy: Strategy, devices: int) -> tuple[TrainState, dict[str, Any]]:
    """The state after STEPS updates of a tiny LLaMA in one layout, and facts about how it lay."""
    mesh, table = mesh_config.build(jax.devices()[:devices]), strategy.table()
    model, optimizer = Transformer(tiny.tiny_llama()), optax.adamw(1e-2)
    make = functools.partial(initial_state, model, optimizer, 0, True)
    _, axes = abstract_parameters(model)
    layout = state_shardings(jax.eval_shape(make), axes, mesh, table)
    rows = partition.batch_sharding(mesh, table)
    step = train_step(model, CausalLMConfig(chunks=2), optimizer, StepConfig(ema_decay=0.5), seed=0)
    with partition.activate(mesh, table):
        state = jax.jit(make, out_shardings=layout)()
        batch = jax.device_put(tiny.batch(8), rows)
        update = jax.jit(step, in_shardings=(layout, rows), out_shardings=(layout, None), donate_argnums=0)
        compiled = update.lower(state, batch).compile()
        facts = {
            "initial": [float(abs(np.asarray(leaf)).sum()) for leaf in jax.tree.leaves(state.params)],
            "gathered": _gathered(compiled.as_text()),
            "stacked": [sorted(leaf.shape) for leaf in jax.tree.leaves(state.params["stack"]) if leaf.ndim > 2],
        }
        losses = []
        for _ in range(STEPS):
            state, report = compiled(state, batch)
            losses.append(float(report.metrics["loss"].mean))
    query = state.params["stack"]["segment_0"]["block_0"]["mixer"]["query"]["kernel"]
    facts |= {
        "losses": losses,
        "query_shards": len({str(shard.index) for shard in query.addressable_shards}),
        "parameters": _bytes(state.params),
        "optimizer": _bytes(state.opt_state),
        "average": _bytes(state.ema),
        "norms": _bytes([leaf for name, leaf in trees.named_leaves(state.params) if name.endswith("scale")])["all"],
    }
    return jax.device_get(state), facts


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
        state, facts = train(*layout)
        reference = reference or state
        # Adam's first moment is a sum of gradients: it shows their size, which the updates hide.
        for part in ("params", "opt_state", "ema"):
            facts[f"{part}_difference"] = _difference(getattr(state, part), getattr(reference, part))
        results[name] = facts
    print(json.dumps(results))


if __name__ == "__main__":
    main()

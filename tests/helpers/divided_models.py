"""A program, to be run with eight fake devices: whole models over divided rows against one device, printed as JSON.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.helpers.divided_models
"""

import contextlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core import garbage
from llm_jax.inference.generate import Generator
from llm_jax.inference.sampling import SamplingConfig
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.build import abstract_parameters, build
from llm_jax.models.config import ModelConfig
from llm_jax.models.inputs import Inputs
from llm_jax.sharding import partition
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.rules import (
    AllToAll,
    Combined,
    ContextParallel,
    FullySharded,
    Ring,
    ShardingConfig,
    TensorParallel,
)
from tests.helpers import published, tiny

B, T = 4, 16
ALONE = MeshConfig(data=2, context=4)
PRODUCT = MeshConfig(data=1, fsdp=2, context=2, tensor=2)
LAYOUTS = {
    "ring": ShardingConfig(ALONE, ContextParallel(Ring(block=2))),
    "all to all": ShardingConfig(ALONE, ContextParallel(AllToAll())),
    "fsdp, ring and tensor": ShardingConfig(
        PRODUCT, Combined(FullySharded(), Combined(ContextParallel(Ring()), TensorParallel(sequence=True)))
    ),
}

RING, SWAP, BOTH = LAYOUTS
FAMILIES = {
    "deepseek": (SWAP,),
    "xlnet": (RING,),
    "mamba2": (RING,),
    "retnet": (BOTH,),
    "lstm": (RING,),
}
"""Of mixers that no model of `llm_jax.parity` has."""


def packed() -> SequenceInfo:
    """Rows of two documents, with padding behind all but the first."""
    generator = np.random.default_rng(0)
    segments, positions = np.zeros((2, B, T), np.int32)
    for row in range(B):
        cut, end = generator.integers(2, T - 3), T - row
        segments[row, :cut], segments[row, cut:end] = 1, 2
        positions[row, :cut], positions[row, cut:end] = np.arange(cut), np.arange(end - cut)
    return SequenceInfo(jnp.asarray(positions), jnp.asarray(segments))


def outcome(config: ModelConfig, sharding: ShardingConfig | None) -> dict[str, Any]:
    """A loss of all scores at real tokens and its gradient."""
    model = build(config)
    params, rows = tiny.parameters(model), packed()

    def loss(params: Any) -> jax.Array:
        logits_BTV = model.apply({"params": params}, Inputs(tiny.tokens(B, T), rows)).logits_BTV
        return jnp.sum(jnp.sin(logits_BTV) * (rows.segment_ids_BT != 0)[..., None])

    if sharding is None:
        program = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
    else:
        layout = Layout.of(sharding)
        places = layout.parameters(*abstract_parameters(model))
        with partition.activate(layout):
            function = jax.jit(jax.value_and_grad(loss), in_shardings=(places,), out_shardings=(None, places))
            program, params = function.lower(params).compile(), jax.device_put(params, places)
    value, gradient = jax.block_until_ready(program(params))
    return {"loss": float(value), "gradient": jax.device_get(gradient)}


def difference(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Of losses, and the largest of gradients relative to the largest number of each. Some gradients are zero but for
    rounding, such as those of key biases: those are compared with the others."""
    pairs = list(zip(jax.tree.leaves(one["gradient"]), jax.tree.leaves(other["gradient"]), strict=True))
    least = 0.01 * max(float(np.abs(b).max()) for _, b in pairs)
    gradient = max(float(np.abs(a - b).max() / max(np.abs(b).max(), least)) for a, b in pairs)
    return {"loss": abs(one["loss"] - other["loss"]) / abs(other["loss"]), "gradient": gradient}


def generated(sharding: ShardingConfig | None) -> list[list[int]]:
    """Tokens that a decoder writes, each the likeliest, after prompts that do not fill the devices."""
    model = build(published.EVERY["gemma2"])
    generator = Generator(model, SamplingConfig(temperature=0.0), eos_id=None, pad_id=0)
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 10]]
    layout = contextlib.nullcontext() if sharding is None else partition.activate(Layout.of(sharding))
    with layout:
        return generator.generate(tiny.parameters(model), prompts, new_tokens=5)


def refused() -> str:
    """What is said of a row that does not divide."""
    model = build(published.EVERY["mamba2"])
    with partition.activate(Layout.of(LAYOUTS[RING])):
        try:
            jax.eval_shape(model.apply, {"params": tiny.parameters(model)}, tiny.tokens(B, 10))
        except ValueError as error:
            return str(error)
    return "none"


def main() -> None:
    """Prints {family: {layout: differences}}, and what is written and refused under divided rows."""
    results: dict[str, Any] = {"families": {}, "refused": refused()}
    results["written"] = [generated(sharding) for sharding in (None, LAYOUTS[RING], LAYOUTS[SWAP])]
    for name, titles in FAMILIES.items():
        config = published.EVERY[name]
        alone = outcome(config, None)
        results["families"][name] = {title: difference(outcome(config, LAYOUTS[title]), alone) for title in titles}
    print(json.dumps(results))


if __name__ == "__main__":
    garbage.postpone()
    main()

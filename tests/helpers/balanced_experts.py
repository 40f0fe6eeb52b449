"""A program, to be run with eight fake devices: the biases that a layer's load has moved in several layouts, and what
layers of all routers give where rows are divided, as JSON.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.helpers.balanced_experts
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import meta

from llm_jax.core import garbage
from llm_jax.core.dtypes import Precision
from llm_jax.core.metrics import means
from llm_jax.layers.ffn.balance import Balance, BiasUpdate, ImportanceLoss, LoadLoss, SequenceLoss
from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.dispatch.slots import Slots
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.expert_choice import ExpertChoiceConfig
from llm_jax.layers.ffn.routers.fixed import HashConfig, RandomConfig
from llm_jax.layers.ffn.routers.sinkhorn import SinkhornConfig
from llm_jax.layers.ffn.routers.soft import SoftConfig
from llm_jax.layers.ffn.routers.token_choice import SigmoidConfig, SoftmaxConfig
from llm_jax.layers.ffn.routing import Choice
from llm_jax.models.config import TransformerConfig
from llm_jax.models.transformer import Transformer
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.optim import AdamWConfig
from llm_jax.sharding import partition
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.rules import Combined, ContextParallel, DataParallel, FullySharded, Ring, ShardingConfig
from llm_jax.train.programs import programs
from llm_jax.train.step import StepConfig
from tests.helpers import routing, tiny

LAYOUTS = {
    "one": (ShardingConfig(MeshConfig(data=1), DataParallel()), 1),
    "mapped": (ShardingConfig(MeshConfig(data=8), DataParallel(use_pmap=True)), 1),
    "fsdp": (ShardingConfig(MeshConfig(data=2, fsdp=4), FullySharded()), 2),
}
ROUTERS = (
    SoftmaxConfig(2),
    ExpertChoiceConfig(1.5),
    ExpertChoiceConfig(1.5, group=4),
    HashConfig(2),
    RandomConfig(2),
    SinkhornConfig(2),
    SoftConfig(2, 16),
)
STEPS, RATE = 3, 0.02
OF_BATCH = (LoadLoss(0.3), ImportanceLoss(0.1))


def balanced(rate: float = RATE, losses: tuple[Balance, ...] = (SequenceLoss(), *OF_BATCH)) -> TransformerConfig:
    """A decoder whose layers are of experts that a bias and losses of rows and of the batch balance."""
    config = tiny.tiny_llama()
    block = config.segments[0].blocks[0]
    experts = MoEConfig(4, block.ffn, SigmoidConfig(2), balance=(BiasUpdate(rate), *losses))
    segment = dataclasses.replace(config.segments[0], blocks=(dataclasses.replace(block, ffn=experts),))
    return dataclasses.replace(config, segments=(segment,))


def routed() -> dict[str, float]:
    """By router the largest relative difference of what a layer gives and tells, losses over the batch and over rows
    among it, between rows on several devices and on one."""
    sharding = ShardingConfig(MeshConfig(data=2, fsdp=2, context=2), Combined(FullySharded(), ContextParallel(Ring())))
    layout = Layout.of(sharding, jax.devices())
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=(8, 16, 8)), jnp.float32)
    real = np.arange(16)[None] < 16 - np.arange(8)[:, None]
    context = routing.context(real, generator.integers(0, 9, (8, 16)).astype(np.int32))
    found = {}
    for router in ROUTERS:
        dispatch = Slots() if isinstance(router, SoftConfig) else Dropless()
        balanced = router.routes is Choice and router.scored
        balance = (LoadLoss(1.0), SequenceLoss(1.0), ImportanceLoss(1.0)) if balanced else ()
        config = MoEConfig(4, GLUConfig(6), router, dispatch, balance)
        layer = config.build(8, Precision(), "moe")
        made = jax.jit(layer.init)(jax.random.key(0), x, context)["params"]
        params = jax.tree.map(lambda leaf: 10 * np.asarray(leaf), meta.unbox(made))
        run = lambda x: layer.apply({"params": params}, x, context, rngs={"dropout": jax.random.key(1)})  # noqa: B023, E731
        alone = jax.block_until_ready(jax.jit(run)(x))
        with partition.activate(layout):
            divided = jax.block_until_ready(jax.jit(lambda x: run(x))(x))  # noqa: B023
        pairs = zip(jax.tree.leaves(divided), jax.tree.leaves(alone), strict=True)
        # Beside the result there are counts, some of which are 0.
        found[str(router)] = max(
            float(np.abs(np.asarray(a) - b).max() / (np.abs(b).max() + (b.ndim < 3))) for a, b in pairs
        )
    return found


def main() -> None:
    """Trains a few updates in each layout, and runs a layer of each router."""
    found = {"routed": routed()}
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
        statistics = report.metrics["experts"].layers["stack/segment_0/block_0"]
        bias = state.params["stack"]["segment_0"]["block_0"]["ffn"]["router"]["bias"]
        scores = report.gradient_norms["stack"]["segment_0"]["block_0"]["ffn"]["router"]["scores"]["kernel"]
        found[name] = {"bias": np.asarray(bias).tolist(), "load": np.asarray(statistics.load_E).tolist()}
        found[name] |= {"loss": means(report.metrics)["balance_loss"], "gradient": float(scores)}
    print(json.dumps(found))


if __name__ == "__main__":
    garbage.postpone()
    main()

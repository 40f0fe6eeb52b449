"""A program, to be run with eight fake devices: models run as pipelines and whole, as JSON facts.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.helpers.pipelines
"""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core import trees
from llm_jax.inference.generate import Generator
from llm_jax.inference.sampling import SamplingConfig
from llm_jax.layers.mixers.context import Context
from llm_jax.layers.mixers.masks import Placement
from llm_jax.models.build import abstract_parameters, build
from llm_jax.models.config import EncoderDecoderConfig, ModelConfig, TransformerConfig
from llm_jax.models.families.recurrent_gemma import recurrent_gemma
from llm_jax.models.families.t5 import t5
from llm_jax.models.stack import Execution, Segment
from llm_jax.planning.program import Program, read
from llm_jax.sharding import partition
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.rules import Both, DataParallel, FullySharded, PipelineParallel, ShardingConfig, TensorParallel
from tests.helpers import tiny

ROWS, LENGTH, STEPS = 16, 8, 3
ALONE = ShardingConfig(MeshConfig(data=1), DataParallel())
LIMITS = {"vocab_size": tiny.VOCAB, "max_length": tiny.MAX_LENGTH}


def _shared() -> TransformerConfig:
    """Three layers of one set of weights, then four of their own."""
    config = tiny.tiny_llama(4)
    (segment,) = config.segments
    return dataclasses.replace(config, segments=(Segment(segment.blocks, 3, shared=True), segment))


MODELS: dict[str, ModelConfig] = {
    "llama": tiny.tiny_llama(8),
    "hybrid": recurrent_gemma(8, 4, 16, 24, channels=24, window=3, taps=3, **LIMITS),
    "shared": _shared(),
    "t5": t5(4, 4, 16, 24, head_dim=6, buckets=8, max_distance=12, decoder_layers=2, **LIMITS),
}
PIPELINES = {
    "stages 2": ("llama", MeshConfig(data=4, stage=2), PipelineParallel(4), Execution(unroll=1)),
    "stages 4": ("llama", MeshConfig(data=2, stage=4), PipelineParallel(8), Execution(remat="full")),
    "rounds 2": ("llama", MeshConfig(data=4, stage=2), PipelineParallel(4, rounds=2), Execution(remat="full")),
    "stages 4, rounds 2": ("llama", MeshConfig(data=2, stage=4), PipelineParallel(4, rounds=2), Execution()),
    "fsdp": (
        "llama",
        MeshConfig(data=2, fsdp=2, stage=2),
        Both(FullySharded(), PipelineParallel(2)),
        Execution(unroll=1),
    ),
    "tensor": (
        "llama",
        MeshConfig(data=1, fsdp=2, stage=2, tensor=2),
        Both(FullySharded(), Both(PipelineParallel(4), TensorParallel(sequence=True))),
        Execution(unroll=1),
    ),
    "hybrid": ("hybrid", MeshConfig(data=4, stage=2), PipelineParallel(2), Execution(unroll=1)),
    "shared": ("shared", MeshConfig(data=4, stage=2), PipelineParallel(2), Execution(unroll=1)),
    "t5": ("t5", MeshConfig(data=4, stage=2), PipelineParallel(2), Execution(unroll=1)),
}
"""Name: model, mesh, strategy, execution."""


class Training:
    """Plain gradient descent of a model on one batch of packed documents, in one layout."""

    def __init__(self, config: ModelConfig, sharding: ShardingConfig, execution: Execution):
        devices = jax.devices()[: 1 if sharding == ALONE else 8]
        self.layout = Layout.of(sharding, devices)
        self.model = build(_executed(config, execution))
        self.places = self.layout.parameters(*abstract_parameters(self.model))
        self.params = jax.device_put(tiny.parameters(self.model), self.places)
        self.batch = jax.device_put(tiny.batch(ROWS, LENGTH), self.layout.rows)
        self.sources = jax.device_put(tiny.batch(ROWS, LENGTH, seed=1), self.layout.rows)
        step = jax.jit(self._step, out_shardings=(self.places, self.places, None), donate_argnums=0)
        with partition.activate(self.layout):
            self.compiled = step.lower(self.params, self.batch, self.sources).compile()

    def scores(self, params: Any, batch: Any, sources: Any) -> jax.Array:
        """[B, T, V] without dropout."""
        placement = Placement(batch.positions_BT, batch.segment_ids_BT)
        inputs = (batch.tokens_BT, placement)
        if isinstance(self.model.config, EncoderDecoderConfig):
            source = Placement(sources.positions_BT, sources.segment_ids_BT)
            inputs = (sources.tokens_BT, batch.tokens_BT, source, placement)
        return self.model.apply({"params": params}, *inputs).logits_BTV

    def _step(self, params: Any, batch: Any, sources: Any) -> tuple[Any, Any, jax.Array]:
        def loss(params: Any) -> jax.Array:
            logits_BTV = self.scores(params, batch, sources)
            right_BTV = batch.targets_BT[..., None] == jnp.arange(tiny.VOCAB)
            nats_BT = jax.nn.logsumexp(logits_BTV, axis=-1) - jnp.sum(jnp.where(right_BTV, logits_BTV, 0), axis=-1)
            return jnp.sum(nats_BT * batch.loss_weights_BT) / jnp.sum(batch.loss_weights_BT)

        value, gradient = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.02 * g, params, gradient), gradient, value

    def run(self) -> tuple[Any, Any, list[float]]:
        """The first gradients, the last parameters, all losses."""
        params, gradients, losses = self.params, [], []
        for _ in range(STEPS):
            params, gradient, loss = jax.block_until_ready(self.compiled(params, self.batch, self.sources))
            gradients.append(gradient)
            losses.append(float(loss))
        self.params = params
        return jax.device_get(gradients[0]), jax.device_get(params), losses


def _executed(config: ModelConfig, execution: Execution) -> ModelConfig:
    if isinstance(config, EncoderDecoderConfig):
        return EncoderDecoderConfig(*(_executed(side, execution) for side in config.sides))
    return dataclasses.replace(config, execution=execution)


def _difference(found: Any, wanted: Any) -> float:
    """Largest difference between two trees, relative to the largest number of each leaf."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def _exchanged(program: Program) -> dict[str, list[tuple[bool, int, int]]]:
    """For each kind of collective: whether it stands in a loop, its executions, bytes of one result."""
    found: dict[str, list[tuple[bool, int, int]]] = {}
    for one in program.collectives:
        found.setdefault(one.kind, []).append((bool(one.loops), one.executions, one.result_bytes))
    return found


def facts(name: str, reference: tuple[Any, Any, list[float]]) -> dict[str, Any]:
    """Of one pipeline, against the same model on one device."""
    model, mesh, strategy, execution = PIPELINES[name]
    training = Training(MODELS[model], ShardingConfig(mesh, strategy), execution)
    stack = training.params["stack"] if "stack" in training.params else training.params["decoder"]["stack"]
    device = jax.devices()[0]
    held = lambda tree: sum(  # noqa: E731
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device == device
    )
    shares = {key: held(segment) / trees.size_bytes(segment) for key, segment in stack.items()}
    held_bytes = held(stack)
    gradient, params, losses = training.run()
    wanted_gradient, wanted_params, wanted_losses = reference
    program = read(training.compiled)
    return {
        "losses": losses,
        "wanted": wanted_losses,
        "gradients": _difference(gradient, wanted_gradient),
        "parameters": _difference(params, wanted_params),
        "least": min(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)),
        "shares": shares,
        "held": held_bytes,
        "stack": trees.size_bytes(stack),
        "flops": program.flops,
        "exact": program.exact,
        "exchanged": _exchanged(program),
        "bubble": training.layout.schedule.bubble,
    }


def written(sharding: ShardingConfig) -> list[list[int]]:
    """What a model writes with a cache, and the most likely tokens of whole rows."""
    training = Training(MODELS["llama"], sharding, Execution(unroll=1))
    generator = Generator(training.model, SamplingConfig(temperature=0.0), None, 0)
    with partition.activate(training.layout):
        rows = generator.generate(training.params, [[3, 1, 4], [1, 5]], 6)
        score = jax.jit(lambda *inputs: training.scores(*inputs).argmax(-1), out_shardings=training.layout.whole)
        best = score(training.params, training.batch, training.sources)
    return rows + np.asarray(best).tolist()


def dropped() -> dict[str, float]:
    """How often neighbouring rows, layers' worths of noise and keys agree where dropout acts on equal rows."""
    config = tiny.tiny_gpt2(4, dropout=0.5)
    layout = Layout.of(ShardingConfig(MeshConfig(data=4, stage=2), PipelineParallel(2)), jax.devices())
    model = build(config)
    params = tiny.parameters(model)
    tokens = jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.int32), (ROWS, LENGTH))

    @functools.partial(jax.jit, out_shardings=layout.whole)
    def hidden(seed: int) -> jax.Array:
        # The embedding's own dropout would make rows differ before the first layer.
        x_BTD = model.apply({"params": params}, tokens, method=lambda m, t: m.embed.tokens(t))
        rngs = {"dropout": jax.random.key(seed)}
        placement = Placement(jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH)))
        run = lambda m, x: m.stack(x, Context(placement))[0]  # noqa: E731
        return model.apply({"params": params}, x_BTD, method=run, rngs=rngs)

    with partition.activate(layout):
        one, again, other = (np.asarray(hidden(seed)) for seed in (0, 0, 1))
    rows = one.reshape(ROWS, -1)
    alike = sum(np.allclose(rows[i], rows[j]) for i in range(ROWS) for j in range(i))
    return {"again": float(np.abs(one - again).max()), "other": float(np.abs(one - other).max()), "alike": int(alike)}


def refused() -> str:
    """What is said of rows that cannot be cut."""
    layout = Layout.of(ShardingConfig(MeshConfig(data=4, stage=2), PipelineParallel(4)), jax.devices())
    model = build(MODELS["llama"])
    try:
        with partition.activate(layout):
            jax.eval_shape(model.apply, {"params": tiny.parameters(model)}, tiny.tokens(8, LENGTH))
    except ValueError as error:
        return str(error)
    return "nothing"


def main() -> None:
    """Prints all facts."""
    references = {name: Training(config, ALONE, Execution(unroll=1)) for name, config in MODELS.items()}
    runs = {name: training.run() for name, training in references.items()}
    found = {name: facts(name, runs[PIPELINES[name][0]]) for name in PIPELINES}
    pipeline = ShardingConfig(MeshConfig(data=4, stage=2), PipelineParallel(4))
    found |= {"written": written(pipeline), "wanted": written(ALONE), "dropped": dropped(), "refused": refused()}
    print(json.dumps(found | {"flops": read(references["llama"].compiled).flops}))


if __name__ == "__main__":
    main()

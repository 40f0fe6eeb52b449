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

from llm_jax.core import garbage, trees
from llm_jax.inference.generate import Generator
from llm_jax.inference.sampling import SamplingConfig
from llm_jax.layers.context import Context
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.build import abstract_parameters, build
from llm_jax.models.config import TransformerConfig
from llm_jax.models.stack import Execution, Segment
from llm_jax.planning.program import Program, read
from llm_jax.sharding import partition
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.rules import (
    Combined,
    DataParallel,
    FullySharded,
    PipelineParallel,
    ShardingConfig,
    TensorParallel,
)
from tests.helpers import tiny

ROWS, LENGTH, STEPS = 16, 8, 3
ALONE = ShardingConfig(MeshConfig(data=1), DataParallel())


def _segments() -> TransformerConfig:
    """Two repeats of two blocks, a block that is left over, and three repeats of one set of weights."""
    config = tiny.tiny_llama()
    ((block,),) = (segment.blocks for segment in config.segments)
    narrow = dataclasses.replace(block, ffn=dataclasses.replace(block.ffn, hidden=8))
    segments = (Segment((block, narrow), 2), Segment((narrow,), 1), Segment((block,), 3, shared=True))
    return dataclasses.replace(config, segments=segments)


MODELS: dict[str, TransformerConfig] = {
    "llama": tiny.tiny_llama(8),
    "segments": _segments(),
}
LOOPED, UNROLLED, RECOMPUTED = Execution(unroll=1), Execution("full", unroll=8), Execution("dots", unroll=1)
DIVIDED = Combined(FullySharded(), TensorParallel(sequence=True))
PIPELINES = {
    "2 stages": ("llama", MeshConfig(data=4, stage=2), PipelineParallel(4), LOOPED),
    "rounds": ("llama", MeshConfig(data=2, stage=4), PipelineParallel(4, virtual_stages=2), RECOMPUTED),
    "product": (
        "llama",
        MeshConfig(fsdp=2, data=1, stage=2, tensor=2),
        Combined(DIVIDED, PipelineParallel(4, 2)),
        LOOPED,
    ),
    "segments": ("segments", MeshConfig(data=4, stage=2), PipelineParallel(2), UNROLLED),
}
"""Name: model, mesh, strategy, execution."""


class Training:
    """Plain gradient descent of a model on one batch of packed documents, in one layout."""

    def __init__(self, config: TransformerConfig, sharding: ShardingConfig, execution: Execution):
        devices = jax.devices()[: 1 if sharding == ALONE else 8]
        self.layout = Layout.of(sharding, devices)
        self.model = build(dataclasses.replace(config, execution=execution))
        self.places = self.layout.parameters(*abstract_parameters(self.model))
        self.params = jax.device_put(tiny.parameters(self.model), self.places)
        self.batch = jax.device_put(tiny.batch(ROWS, LENGTH), self.layout.rows)
        step = jax.jit(self._step, out_shardings=(self.places, self.places, None), donate_argnums=0)
        with partition.activate(self.layout):
            self.compiled = step.lower(self.params, self.batch).compile()

    def scores(self, params: Any, batch: Any) -> jax.Array:
        """[B, T, V] without dropout."""
        return self.model.apply({"params": params}, batch.inputs).logits_BTV

    def _step(self, params: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
        def loss(params: Any) -> jax.Array:
            logits_BTV = self.scores(params, batch)
            right_BTV = batch.targets_BT[..., None] == jnp.arange(tiny.VOCAB)
            nats_BT = jax.nn.logsumexp(logits_BTV, axis=-1) - jnp.sum(jnp.where(right_BTV, logits_BTV, 0), axis=-1)
            return jnp.sum(nats_BT * batch.loss_weights_BT) / jnp.sum(batch.loss_weights_BT)

        value, gradient = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.02 * g, params, gradient), gradient, value

    def run(self) -> tuple[Any, Any, list[float]]:
        """The first gradients, the last parameters, all losses."""
        params, gradients, losses = self.params, [], []
        for _ in range(STEPS):
            params, gradient, loss = jax.block_until_ready(self.compiled(params, self.batch))
            gradients.append(gradient)
            losses.append(float(loss))
        self.params = params
        return jax.device_get(gradients[0]), jax.device_get(params), losses


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
    params, wanted = training.params, reference
    segments = params["stack"]
    found = {
        "shares": {key: _held(segment) / trees.size_bytes(segment) for key, segment in segments.items()},
        "matrices": [leaf.nbytes for leaf in jax.tree.leaves(segments) if leaf.ndim > 2],
        "stack": trees.size_bytes(segments),
    }
    gradient, params, losses = training.run()
    program = read(training.compiled)
    return found | {
        "losses": losses,
        "wanted": wanted[2],
        "gradient_difference": _difference(gradient, wanted[0]),
        "parameter_difference": _difference(params, wanted[1]),
        "least": min(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)),
        "flops": program.flops,
        "exact": program.exact,
        "exchanged": _exchanged(program),
        "bubble": training.layout.schedule.bubble,
        "steps": training.layout.schedule.steps,
    }


def _held(tree: Any) -> int:
    """Bytes of a tree that the first device holds."""
    shards = (shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards)
    return sum(shard.data.nbytes for shard in shards if shard.device == jax.devices()[0])


def written(sharding: ShardingConfig) -> list[list[int]]:
    """What a model writes with a cache, and the most likely tokens of whole rows."""
    training = Training(MODELS["llama"], sharding, LOOPED)
    generator = Generator(training.model, SamplingConfig(temperature=0.0), None, 0)
    with partition.activate(training.layout):
        rows = generator.generate(training.params, [[3, 1, 4], [1, 5]], 6)
        score = jax.jit(lambda *inputs: training.scores(*inputs).argmax(-1), out_shardings=training.layout.whole)
        best = score(training.params, training.batch)
    return rows + np.asarray(best).tolist()


def dropped() -> dict[str, Any]:
    """What dropout leaves of layers that each add twice one to every feature: numbers of ones, [rows, features]."""
    model = build(tiny.tiny_gpt2(4, dropout=0.5))
    layout = Layout.of(ShardingConfig(MeshConfig(data=4, stage=2), PipelineParallel(4)), jax.devices())
    ones = lambda path, leaf: jnp.full_like(leaf, path.endswith(("out/bias", "down/bias")))  # noqa: E731
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: ones(trees.path_name(path), leaf), tiny.parameters(model)
    )
    context = Context(SequenceInfo(jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH))))

    @functools.partial(jax.jit, out_shardings=layout.whole)
    def stack(params: Any, seed: int) -> jax.Array:
        zeros_BTD = jnp.zeros((ROWS, LENGTH, model.config.width))
        run = lambda model: model.stack(zeros_BTD, context)[0]  # noqa: E731
        return model.apply({"params": params}, method=run, rngs={"dropout": jax.random.key(seed)})

    with partition.activate(layout):
        one, again, other = (np.asarray(jax.block_until_ready(stack(params, seed))) for seed in (0, 0, 1))
    # What is not dropped is doubled.
    counts = (one / 2).reshape(ROWS, -1)
    return {
        "counts": counts.tolist(),
        "same": bool((one == again).all()),
        "other": bool((one == other).all()),
    }


def kept() -> dict[str, list[int]]:
    """What the backward pass keeps by policy: bytes, and number of matrices that are kept for every step."""
    layout = Layout.of(
        ShardingConfig(MeshConfig(data=4, stage=2), PipelineParallel(4, virtual_stages=2)), jax.devices()
    )
    found = {}
    for remat in ("none", "dots", "projections", "full"):
        model = build(dataclasses.replace(MODELS["llama"], execution=Execution(remat, unroll=1)))
        shapes, _ = abstract_parameters(model)
        scores = functools.partial(_scores, model)
        with partition.activate(layout):
            saved = jax.eval_shape(functools.partial(_pullback, scores), shapes)
        leaves = [leaf for leaf in jax.tree.leaves(saved) if leaf.shape[:1] == (layout.schedule.steps,)]
        matrices = [leaf for leaf in leaves if leaf.shape[-2:] in ((16, 24), (24, 16))]
        found[remat] = [trees.size_bytes(saved), len(matrices)]
    return found


def _scores(model: Any, params: Any) -> jax.Array:
    return model.apply({"params": params}, tiny.tokens(ROWS, LENGTH)).logits_BTV


def _pullback(function: Any, params: Any) -> Any:
    """The function from cotangents to those of `params`, which holds what it keeps."""
    return jax.vjp(function, params)[1]


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
    references = {name: Training(config, ALONE, LOOPED) for name, config in MODELS.items()}
    runs = {name: training.run() for name, training in references.items()}
    found = {name: facts(name, runs[PIPELINES[name][0]]) for name in PIPELINES}
    pipeline = ShardingConfig(MeshConfig(data=4, stage=2), PipelineParallel(4))
    found |= {
        "written": written(pipeline),
        "wanted": written(ALONE),
        "dropped": dropped(),
        "refused": refused(),
        "kept": kept(),
    }
    print(json.dumps(found | {"flops": read(references["llama"].compiled).flops}))


if __name__ == "__main__":
    garbage.postpone()
    main()

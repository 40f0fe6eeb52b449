"""A program, to be run with eight fake devices: experts on several of them against one device, as JSON facts.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.helpers.expert_parallel
"""

import functools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core import garbage, trees
from llm_jax.layers.ffn.balance import LoadLoss, SequenceLoss, ZLoss
from llm_jax.layers.ffn.dispatch.capacity import Capacity
from llm_jax.layers.ffn.experts import Local, logical_axes
from llm_jax.layers.ffn.mlp import DenseConfig, GLUConfig, MLPConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.models.build import abstract_parameters, build
from llm_jax.models.families.decoder import with_experts
from llm_jax.planning.program import read
from llm_jax.sharding import axes, partition
from llm_jax.sharding.device_group import DeviceGroup
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.rules import Combined, ExpertParallel, PipelineParallel, ShardingConfig, TensorParallel
from tests.helpers import tiny

DEVICES, EXPERTS, WIDTH, ROWS = 8, 16, 6, 20  # rows that a device sends
LOADS = ("even", "uneven", "one expert", "one device", "few", "none")
WINDOWS = (1, 20)
EXPERT = ShardingConfig(MeshConfig(data=1, expert=8), ExpertParallel())
TENSOR = ShardingConfig(MeshConfig(data=1, expert=4, tensor=2), Combined(ExpertParallel(), TensorParallel()))
PIPELINES = {
    "stages": ShardingConfig(MeshConfig(data=2, stage=4), PipelineParallel(8)),
    "experts": ShardingConfig(
        MeshConfig(data=1, stage=2, expert=4), Combined(PipelineParallel(4, 4), ExpertParallel())
    ),
}
BATCH, LENGTH, TOP = 16, 8, 2
PARTS = 4


SENT: list[int] = []
"""Numbers that a device sent to each expert's in an exchange of an array."""


class Counting(DeviceGroup):
    """Writes down what is sent in pieces."""

    def exchanged(self, x: jax.Array, into: jax.Array, left: jax.Array, sizes: jax.Array, *rest: jax.Array):
        """As of DeviceGroup."""
        numbers = math.prod(x.shape[1:])
        jax.debug.callback(lambda entries: SENT.append(int(entries) * numbers), jnp.sum(sizes))
        return super().exchanged(x, into, left, sizes, *rest)


def sizes(load: str) -> np.ndarray:
    """Rows that each device sends to each expert, [devices, experts]; at most ROWS in all."""
    generator, found = np.random.default_rng(0), np.zeros((DEVICES, EXPERTS), int)
    if load == "one expert":
        found[:, 5] = ROWS
    elif load == "one device":
        found[:, 6:8] = ROWS // 2
    elif load == "few":
        found[2, 3], found[7, 15] = 1, 2
    elif load != "none":
        chances = np.full(EXPERTS, 1 / EXPERTS) if load == "even" else generator.dirichlet(np.full(EXPERTS, 0.3))
        found = np.stack([generator.multinomial(ROWS - device % 3, chances) for device in range(DEVICES)])
    return found


def sent(config: DenseConfig, sharding: ShardingConfig, windows: int) -> dict[str, tuple[float, int]]:
    """By load the largest difference, relative to the largest number, of results and gradients of rows sent to their
    experts from a product for each row; and how many numbers were sent for both."""
    layout, generator = Layout.of(sharding), np.random.default_rng(1)
    devices = layout.parts(axes.BATCH)
    draw = lambda *shape: jnp.asarray(generator.normal(size=shape), jnp.float32)  # noqa: E731
    shapes = {
        name: (config.hidden, WIDTH) if name == "down" else (WIDTH, config.hidden) for name in logical_axes(config)
    }
    biased = lambda shape: draw(EXPERTS, shape[1]) if config.bias else None  # noqa: E731
    weights = {name: (draw(EXPERTS, *shape), biased(shape)) for name, shape in shapes.items()}
    rows_MPD, dy_MPD, weights_MP = draw(devices, ROWS, WIDTH), draw(devices, ROWS, WIDTH), draw(devices, ROWS)

    @functools.partial(jax.jit, static_argnums=0)
    def both(function: Any, sizes_ME: jax.Array) -> Any:
        y_MPD, pullback = jax.vjp(functools.partial(function, sizes_ME=sizes_ME), weights, rows_MPD, weights_MP)
        return y_MPD, pullback(dy_MPD)

    alone, divided = functools.partial(_alone, config), functools.partial(_divided, config, windows)
    found = {}
    for load in LOADS:
        sizes_ME = jnp.asarray(sizes(load)[:devices], jnp.int32)
        wanted = both(alone, sizes_ME)
        SENT.clear()
        with partition.activate(layout):
            pairs = zip(*map(jax.tree.leaves, (jax.block_until_ready(both(divided, sizes_ME)), wanted)), strict=True)
        jax.effects_barrier()
        difference = max(float(jnp.abs(a - b).max() / (jnp.abs(b).max() + 1e-6)) for a, b in pairs)
        found[load] = (difference, sum(SENT))
    return found


def _alone(
    config: DenseConfig, weights: Any, rows_MPD: jax.Array, weights_MP: jax.Array, sizes_ME: jax.Array
) -> jax.Array:
    """Every row with weights of its own, those of its expert; 0 past the last."""
    expert_MP = jnp.sum(jnp.arange(ROWS)[:, None] >= jnp.cumsum(sizes_ME, axis=1)[:, None], axis=-1)
    own = jax.tree.map(lambda leaf: leaf[jnp.minimum(expert_MP, EXPERTS - 1)], weights)
    product = lambda x, name: jnp.einsum("mpd,mpdf->mpf", x, own[name][0]) + own[name][1]  # noqa: E731
    hidden = jax.nn.relu(product(rows_MPD, "up"))
    if isinstance(config, GLUConfig):
        hidden = jax.nn.silu(product(rows_MPD, "gate")) * product(rows_MPD, "up")
    return jnp.where(expert_MP < EXPERTS, weights_MP, 0)[..., None] * product(hidden, "down")


def _divided(
    config: DenseConfig, windows: int, weights: Any, rows_MPD: jax.Array, weights_MP: jax.Array, sizes_ME: jax.Array
) -> jax.Array:
    others, *lines = (partition.device_group(word) for word in (axes.EXPERTS, axes.EMBED, axes.MLP))

    def here(weights: Any, rows_1PD: jax.Array, weights_1P: jax.Array, sizes_1E: jax.Array) -> jax.Array:
        local = Local.of(config, EXPERTS, weights, Counting(others.axes, others.size), *lines)
        return local.ragged(rows_1PD[0], weights_1P[0], sizes_1E[0], windows)[None, None]

    rows = (axes.BATCH,)
    run = partition.per_device(here, (logical_axes(config), rows, rows, rows), (axes.MLP, axes.BATCH))
    return jnp.sum(run(weights, rows_MPD, weights_MP, sizes_ME), axis=0)


def compute(sharding: ShardingConfig | None) -> dict[str, list]:
    """The report of a mixture's layers, by field."""
    experts = MoEConfig(
        8, GLUConfig(24), SoftmaxConfig(TOP), Capacity(0.5), (ZLoss(0.1), SequenceLoss(1.0), LoadLoss())
    )
    model = build(with_experts(tiny.tiny_llama(8), experts))
    params, batch = tiny.parameters(model), tiny.batch(BATCH, LENGTH)

    def reports(params: Any) -> Any:
        return model.apply({"params": params}, batch.inputs).aux

    if sharding is None:
        found = jax.jit(reports)(params)
    else:
        layout = Layout.of(sharding)
        with partition.activate(layout):
            found = jax.block_until_ready(jax.jit(reports, out_shardings=layout.whole)(params))
    (report,) = found.values()
    return {name: np.asarray(leaf).tolist() for name, leaf in trees.named_leaves(report)}


def exchanged(experts: int) -> float:
    """Bytes that a device sends by all-to-all for a layer of experts, forward and backward, with a place for every
    choice; the experts lie on so many devices."""
    config = MoEConfig(8, MLPConfig(24), SoftmaxConfig(TOP), Capacity(1.0))
    layout = Layout.of(ShardingConfig(MeshConfig(data=8 // experts, expert=experts), ExpertParallel()))
    model = build(with_experts(tiny.tiny_llama(1), config))
    params = tiny.parameters(model)
    loss = lambda params, tokens: jnp.sum(jnp.sin(model.apply({"params": params}, tokens).hidden_BTD))  # noqa: E731
    with partition.activate(layout):
        program = jax.jit(jax.grad(loss)).lower(params, tiny.tokens(BATCH, LENGTH)).compile()
    return read(program).moved_bytes("all-to-all")


def refused(experts: int) -> str:
    """What is said of experts that do not divide."""
    model = build(with_experts(tiny.tiny_llama(1), MoEConfig(experts, MLPConfig(24), SoftmaxConfig(TOP))))
    try:
        Layout.of(EXPERT).parameters(*abstract_parameters(model))
    except ValueError as error:
        return str(error)
    return "nothing"


def main() -> None:
    """Prints all facts."""
    found: dict[str, Any] = {
        "sent": {windows: sent(GLUConfig(4, bias=True), EXPERT, windows) for windows in WINDOWS},
        "tensor": sent(MLPConfig(4, activation="relu", bias=True), TENSOR, 3),
        "computed": {name: compute(sharding) for name, sharding in {"alone": None, **PIPELINES}.items()},
        "exchanged": exchanged(PARTS),
        "refused": refused(12),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    garbage.postpone()
    main()

"""One cell of the parity matrix: a model trained in a layout, against the same on one device."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, Self

import jax
import numpy as np

from llm_jax.core import trees
from llm_jax.core.checks import given
from llm_jax.core.metrics import Ratio, metric_of
from llm_jax.models.build import build
from llm_jax.models.config import EncoderDecoderConfig, ModelConfig
from llm_jax.models.stack import Execution
from llm_jax.optim import AdamWConfig, Constant
from llm_jax.parity import models
from llm_jax.parity.models import VOCAB
from llm_jax.parity.strategies import DEVICES, EXCHANGE, GATHER, Strategy
from llm_jax.planning.program import Program, read
from llm_jax.sharding.partition import HOST, Layout
from llm_jax.sharding.rules import ShardingConfig
from llm_jax.train.compile import Mapped
from llm_jax.train.programs import Programs, programs
from llm_jax.train.state import TrainState
from llm_jax.train.step import StepConfig

STEPS = 10
# The first moment after one update is a tenth of the gradient. Weights whose gradient is next to nothing must not be
# moved by its rounding. Updates are small: at three times this rate ten of them let an encoder-decoder's difference by
# rounding grow a hundredfold, also on one device.
OPTIMIZER = AdamWConfig(peak_lr=3e-4, schedule=Constant(), epsilon=1e-4, clip_norm=None)


@dataclasses.dataclass(frozen=True)
class Way:
    """How a model is run: none of it changes what is computed."""

    execution: Execution = Execution(unroll=1)
    accumulate: int = 1


WAYS: dict[str, Way] = {
    "loop": Way(),
    "unrolled": Way(Execution(unroll=64)),
    "remat": Way(Execution(unroll=1, remat="full")),
    "accumulated": Way(accumulate=4),
    "unrolled, remat, accumulated": Way(Execution(unroll=64, remat="projections"), 4),
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What training a model left behind."""

    losses: tuple[float, ...]
    gradients: dict[str, np.ndarray]
    """Of the first update, by the parameters' names."""


@dataclasses.dataclass(frozen=True)
class ParityCase:
    """What was found for a model, a strategy and a way to run it; differences are relative."""

    model: str
    strategy: str
    way: str
    first_loss: float
    """Difference of the loss of the first update."""
    gradient: float
    """Largest difference of a leaf of its gradient, of the leaf's largest number."""
    last_loss: float
    """Difference of the loss of the last update."""
    learned: float
    """By how much the loss fell on one device."""
    parameters: float
    """Bytes of parameters on a device, of all."""
    optimizer: float
    """Bytes of the optimizer's state on a device, of all."""
    collectives: dict[str, float]
    """Bytes that a device sends in a step, by kind."""
    faults: tuple[str, ...]
    """What the compiled program does that the strategy must not, or does not that it must."""


def cell(model: str, name: str, strategy: Strategy, way: str) -> ParityCase:
    """Trains a model of MODELS by a strategy, and compares."""
    made, program = _compiled(model, strategy.sharding, way, DEVICES)
    outcome, state = _trained(made, program, _start(model))
    held = _Held.of(state, strategy.within)
    expected = alone(model)
    facts = read(program)
    collectives = {kind: facts.moved_bytes(kind) for kind in sorted({one.kind for one in facts.collectives})}
    return ParityCase(
        model=model,
        strategy=name,
        way=way,
        first_loss=_relative(outcome.losses[0], expected.losses[0]),
        gradient=float(
            np.max([_difference(outcome.gradients[path], expected.gradients[path]) for path in expected.gradients])
        ),
        last_loss=_relative(outcome.losses[-1], expected.losses[-1]),
        learned=expected.losses[0] - expected.losses[-1],
        parameters=held.parameters,
        optimizer=held.optimizer,
        collectives=collectives,
        faults=tuple(_faults(strategy, facts, held) + _gathered_scores(program)),
    )


@functools.cache
def alone(model: str) -> Outcome:
    """A model trained on one device, in the plainest way."""
    return _trained(*_compiled(model, ShardingConfig(), "loop", 1), _start(model))[0]


@functools.cache
def _start(model: str) -> TrainState:
    """The state before the first update, on the host. To make it in each layout would take a third of the time; that
    it would be the same is tests/sharding/test_eight_devices.py's."""
    return jax.device_get(_programs(model, ShardingConfig(), "loop", 1).fresh())


def _compiled(model: str, sharding: ShardingConfig, way: str, devices: int) -> tuple[Programs, jax.stages.Compiled]:
    made = _programs(model, sharding, way, devices)
    return made, made.compile_step(jax.device_put(models.batch(0), made.layout.rows))


def _programs(model: str, sharding: ShardingConfig, way: str, devices: int) -> Programs:
    module = build(_run_by(models.MODELS[model](), WAYS[way].execution))
    layout = Layout.of(sharding, jax.devices()[:devices])
    update = StepConfig(accumulate=WAYS[way].accumulate)
    return programs(module, models.objective(module), OPTIMIZER, update, layout, STEPS, seed=0)


def _run_by(config: ModelConfig, execution: Execution) -> ModelConfig:
    if isinstance(config, EncoderDecoderConfig):
        stacks = (dataclasses.replace(stack, execution=execution) for stack in config.stacks)
        return EncoderDecoderConfig(*stacks)
    return dataclasses.replace(config, execution=execution)


@dataclasses.dataclass(frozen=True)
class _Held:
    """What the first device holds after training."""

    parameters: float
    """Share of the parameters' bytes, experts left out."""
    optimizer: float
    """Share of the optimizer's state, without its counters and experts."""
    experts: tuple[float, ...]
    """Both shares of experts; none without any."""
    memories: frozenset[str]
    """Kinds of memory in which the optimizer's state lies."""

    @classmethod
    def of(cls, state: TrainState, within: str) -> Self:
        memories = frozenset(leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.opt_state))
        held = state.params, _moments(state.opt_state)
        others = [_share(tree, lambda name: within in name and _EXPERTS not in name) for tree in held]
        experts = [_share(tree, lambda name: _EXPERTS in name) for tree in held]
        parameters, optimizer = (given(share, f"no parameter has {within!r} in its path") for share in others)
        return cls(parameters, optimizer, tuple(share for share in experts if share is not None), memories)


_EXPERTS = "/experts/"


def _trained(made: Programs, program: jax.stages.Compiled, start: TrainState) -> tuple[Outcome, TrainState]:
    """What training from `start` leaves behind, and the last state."""
    losses, gradients = [], {}
    # A program of pmap takes batches in another shape, which its caller knows.
    update = made.step if isinstance(made.step, Mapped) else program
    with made.activated():
        state = jax.tree.map(_laid, start, made.abstract_state)
        for step in range(STEPS):
            batch = jax.device_put(models.batch(step), made.layout.rows)
            state, report = update(state, batch)
            losses.append(float(metric_of(report.metrics, "loss", Ratio).mean))
            if step == 0:
                first = jax.device_get(_moments(state.opt_state))
                gradients = {path: leaf / (1 - OPTIMIZER.b1) for path, leaf in trees.named_leaves(first)}
    return Outcome(tuple(losses), gradients), state


def _laid(leaf: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    # Copies: the update takes its arrays' memory, and an array may share that of the host's.
    return jax.make_array_from_callback(like.shape, like.sharding, lambda part: np.array(leaf[part]))


def _moments(opt_state: Any) -> Any:
    """Adam's first moments, wherever the optimizer keeps them."""
    found = [part.mu for part in jax.tree.leaves(opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu")]
    (moments,) = found
    return moments


def _share(tree: Any, counts: Callable[[str], bool]) -> float | None:
    """Bytes that the first device holds of the leaves whose name counts, of all of theirs; None if there are none."""
    leaves = [leaf for name, leaf in trees.named_leaves(tree) if counts(name)]
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    return held / trees.size_bytes(leaves) if leaves else None


def _faults(strategy: Strategy, facts: Program, held: _Held) -> list[str]:
    kinds = {one.kind for one in facts.collectives}
    present, absent = set(strategy.present), set(strategy.absent)
    if held.experts and strategy.experts:
        # Devices tell one another how many rows they will send.
        present, absent = present | {EXCHANGE}, absent - {EXCHANGE, GATHER}
    found = [f"no {kind}" for kind in sorted(present - kinds)]
    found += [f"{kind} of {facts.moved_bytes(kind):.0f} bytes" for kind in sorted(absent & kinds)]
    if (held.memories == {HOST}) != strategy.sharding.offload:
        found.append(f"the optimizer state lies in {', '.join(sorted(held.memories))}")
    shares = [
        ("parameters", strategy.parameters, held.parameters),
        ("optimizer state", strategy.optimizer, held.optimizer),
    ]
    for (what, parts, _), share in zip(tuple(shares), held.experts, strict=False):
        shares.append((f"{what} of experts", strategy.experts or parts, share))
    for what, parts, share in shares:
        if not 1 / parts <= share <= 1 / parts + _SMALL:
            found.append(f"{share:.3f} of the {what} on a device, not 1/{parts}")
    return found


_SMALL = 0.06
"""Share of the parameters of a small model that are norms, biases, gates within heads, and counters."""


def _gathered_scores(program: jax.stages.Compiled) -> list[str]:
    """Gathers of scores [rows, places, vocabulary]; the matrices that make them have two axes."""
    shapes = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather(?:-start)?\(", program.as_text() or "")
    return [
        f"scores [{shape}] are gathered" for shape in shapes if shape.count(",") > 1 and shape.endswith(f",{VOCAB}")
    ]


def _relative(found: float, expected: float) -> float:
    return abs(found - expected) / abs(expected)


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())

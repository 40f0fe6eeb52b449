"""One case of the parity matrix: a model trained in a layout, compared with the same model on one device."""

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
# After one step the first moment is a tenth of the gradient. epsilon is large so that weights with almost no gradient
# are not moved by its rounding errors. The learning rate is small: at three times this rate, ten steps amplify rounding
# differences of an encoder-decoder a hundredfold, also on one device.
OPTIMIZER = AdamWConfig(peak_lr=3e-4, schedule=Constant(), epsilon=1e-4, clip_norm=None)


@dataclasses.dataclass(frozen=True)
class Way:
    """An execution mode, which does not affect the result."""

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
    """Result of a training run."""

    losses: tuple[float, ...]
    gradients: dict[str, np.ndarray]
    """Gradients of the first step, by parameter name."""


@dataclasses.dataclass(frozen=True)
class ParityCase:
    """Result for a model, a strategy and an execution mode; differences are relative."""

    model: str
    strategy: str
    way: str
    steps: int
    """Updates that are made."""
    first_loss: float
    """Difference of the loss of the first step."""
    gradient: float
    """Maximum over leaves of the difference of the first gradient, relative to the leaf's largest absolute value."""
    last_loss: float
    """Difference of the loss of the last step."""
    learned: float
    """Decrease of the loss on one device."""
    parameters: float
    """Fraction of the bytes of parameters that a device holds."""
    optimizer: float
    """Fraction of the bytes of optimizer state that a device holds."""
    collectives: dict[str, float]
    """Bytes that a device sends per step, by kind of collective."""
    faults: tuple[str, ...]
    """Violations of the expectations of the strategy by the compiled program."""


def cell(model: str, name: str, strategy: Strategy, way: str, steps: int = STEPS) -> ParityCase:
    """Trains a model of MODELS with a strategy, and compares it with training on one device."""
    made, program = _compiled(model, strategy.sharding, way, DEVICES)
    outcome, state = _trained(model, made, program, steps)
    held = _Held.of(state, strategy.within)
    expected = alone(model, steps)
    facts = read(program)
    collectives = {kind: facts.moved_bytes(kind) for kind in sorted({one.kind for one in facts.collectives})}
    return ParityCase(
        model=model,
        strategy=name,
        way=way,
        steps=steps,
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
def alone(model: str, steps: int) -> Outcome:
    """Training on one device in the mode "loop"."""
    return _trained(model, *_compiled(model, ShardingConfig(), "loop", 1), steps)[0]


@functools.cache
def _start(model: str) -> TrainState:
    """The initial state, in host memory. Computing it in each layout would take a third of the time. That it would be
    the same is tested in tests/sharding/test_eight_devices.py."""
    return jax.device_get(_programs(model, ShardingConfig(), "loop", 1).fresh())


def _compiled(model: str, sharding: ShardingConfig, way: str, devices: int) -> tuple[Programs, jax.stages.Compiled]:
    made = _programs(model, sharding, way, devices)
    return made, made.compile_step(jax.device_put(models.MODELS[model].batch(0), made.layout.rows))


def _programs(model: str, sharding: ShardingConfig, way: str, devices: int) -> Programs:
    task = models.MODELS[model]
    module = build(_run_by(task.model(), WAYS[way].execution))
    layout = Layout.of(sharding, jax.devices()[:devices])
    update = StepConfig(accumulate=WAYS[way].accumulate)
    return programs(module, task.objective, OPTIMIZER, update, layout, STEPS, seed=0)


def _run_by(config: ModelConfig, execution: Execution) -> ModelConfig:
    if isinstance(config, EncoderDecoderConfig):
        stacks = (dataclasses.replace(stack, execution=execution) for stack in config.stacks)
        return EncoderDecoderConfig(*stacks)
    return dataclasses.replace(config, execution=execution)


@dataclasses.dataclass(frozen=True)
class _Held:
    """Fractions of the state that the first device holds after training."""

    parameters: float
    """Fraction of the bytes of parameters, without experts."""
    optimizer: float
    """Fraction of the bytes of optimizer state, without counters and experts."""
    experts: tuple[float, ...]
    """Both fractions for experts; empty without experts."""
    memories: frozenset[str]
    """Memory kinds of the optimizer state."""

    @classmethod
    def of(cls, state: TrainState, within: str) -> Self:
        memories = frozenset(leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.opt_state))
        held = state.params, _moments(state.opt_state)
        others = [_share(tree, lambda name: within in name and _EXPERTS not in name) for tree in held]
        experts = [_share(tree, lambda name: _EXPERTS in name) for tree in held]
        parameters, optimizer = (
            given(share, f"no parameter has {within!r} in its path: change the path") for share in others
        )
        return cls(parameters, optimizer, tuple(share for share in experts if share is not None), memories)


_EXPERTS = "/experts/"


def _trained(model: str, made: Programs, program: jax.stages.Compiled, steps: int) -> tuple[Outcome, TrainState]:
    """The result of training, and the last state."""
    losses, gradients, start = [], {}, _start(model)
    # A pmap program takes batches of another shape, which the wrapper `Mapped` provides.
    update = made.step if isinstance(made.step, Mapped) else program
    with made.activated():
        state = jax.tree.map(_laid, start, made.abstract_state)
        for step in range(steps):
            batch = jax.device_put(models.MODELS[model].batch(step), made.layout.rows)
            state, report = update(state, batch)
            losses.append(float(metric_of(report.metrics, "loss", Ratio).mean))
            if step == 0:
                first = jax.device_get(_moments(state.opt_state))
                gradients = {path: leaf / (1 - OPTIMIZER.b1) for path, leaf in trees.named_leaves(first)}
    return Outcome(tuple(losses), gradients), state


def _laid(leaf: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    # Copies, because the step donates its arrays, and a device array may share host memory.
    return jax.make_array_from_callback(like.shape, like.sharding, lambda part: np.array(leaf[part]))


def _moments(opt_state: Any) -> Any:
    """Adam's first moments, from anywhere in the optimizer state."""
    found = [part.mu for part in jax.tree.leaves(opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu")]
    (moments,) = found
    return moments


def _share(tree: Any, counts: Callable[[str], bool]) -> float | None:
    """Fraction of the bytes that the first device holds, over leaves whose name satisfies `counts`; None without such
    leaves."""
    leaves = [leaf for name, leaf in trees.named_leaves(tree) if counts(name)]
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    return held / trees.size_bytes(leaves) if leaves else None


def _faults(strategy: Strategy, facts: Program, held: _Held) -> list[str]:
    kinds = {one.kind for one in facts.collectives}
    present, absent = set(strategy.present), set(strategy.absent)
    if held.experts and strategy.experts:
        # Devices exchange the numbers of rows that they will send by an all-gather.
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
"""Tolerance of fractions: norms, biases, gates within heads, and counters of a small model are not sharded."""


def _gathered_scores(program: jax.stages.Compiled) -> list[str]:
    """All-gathers of logits [batch, length, vocabulary]. The weight matrices of the logits have only two axes."""
    shapes = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather(?:-start)?\(", program.as_text() or "")
    return [
        f"scores [{shape}] are gathered" for shape in shapes if shape.count(",") > 1 and shape.endswith(f",{VOCAB}")
    ]


def _relative(found: float, expected: float) -> float:
    return abs(found - expected) / abs(expected)


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())

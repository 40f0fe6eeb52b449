"""What the training loop costs: time per step inside it / time per bare compiled step; how far it dispatches ahead.

Command: python experiments/benchmarks/loop_overhead.py [--family llama] [--size 10M] [--publish]

Inside: `train` with the hooks of `llm-jax train` - log with live display, recorder (JSON lines and TensorBoard),
evaluation, saving, signals - on rows that are packed and put on the device as in a run. Evaluations and saves are
never due: their work is not counted. Bare: the same compiled function on one batch that is on the device already, one
step dispatched ahead as in the loop. Blocks of both take turns; figures are medians over blocks.

Ahead: the time between the dispatch of a step and the end of the step before it, as a share of a step; median over
steps. 1 is a host that costs nothing. Where a hook waits for the device it is 0, though the other ratio may show little
of it: the device waits only as long as the host then takes to dispatch. Compilations are those after the first step.
"""

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import tyro
from models import SIZES, Family, SizeName, our_config
from rich.console import Console
from tables import machine, markdown, median, publish

from llm_jax.assemble import Assembly, assemble
from llm_jax.core.run_directory import RunDirectory
from llm_jax.data.corpus import CorpusConfig
from llm_jax.data.pipeline import DataConfig
from llm_jax.data.sources import TextFilesConfig
from llm_jax.data.splits import RangeSplit
from llm_jax.experiment import Experiment
from llm_jax.models import count
from llm_jax.objectives.batch import Batch
from llm_jax.optim import AdamWConfig
from llm_jax.tokenizers import ByteTokenizerConfig
from llm_jax.train import hooks
from llm_jax.train.compile import Update
from llm_jax.train.loop import Hook, train
from llm_jax.train.state import TrainState
from llm_jax.train.step import StepReport

COMPILATION = "/jax/core/compile/backend_compile_duration"
"""Event that JAX reports for each program it compiles."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    family: Family = "llama"
    size: SizeName = "10M"
    block: int = 10
    """Steps per block."""
    rounds: int = 9
    """Blocks of each kind."""
    publish: bool = False
    """Write the table into experiments/README.md."""
    smoke: bool = False
    """Only see that it runs: a small model, whose steps are long enough to be dispatched ahead; two short blocks."""


SMOKE = {"size": "1M", "block": 4, "rounds": 2, "publish": False}


@dataclasses.dataclass(frozen=True)
class Measured:
    """Seconds per step of each block, programs compiled after the first block of each kind, and how far ahead of the
    end of a step the next one was dispatched, in seconds."""

    loop: list[float]
    bare: list[float]
    compilations: int
    ahead: list[float]


class Ahead(Hook):
    """The first of the hooks: measures how far ahead the steps of `function` are dispatched."""

    def __init__(self, function: Update):
        self._function = function
        self._dispatched = 0.0
        self.seconds: list[float] = []

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, StepReport]:
        """Dispatches an update."""
        state, report = self._function(state, batch)
        self._dispatched = time.perf_counter()
        return state, report

    def on_metrics(self, step: int, metrics: dict[str, float]) -> None:
        # Called once the figures of a step are there, the next one having been dispatched.
        self.seconds.append(time.perf_counter() - self._dispatched)


def main(arguments: Arguments) -> None:
    """Measures and prints the table."""
    if arguments.smoke:
        arguments = dataclasses.replace(arguments, **SMOKE)
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(arguments, Path(folder))
    loop, bare = median(measured.loop), median(measured.bare)
    header = (
        "size",
        "family",
        "loop, ms a step",
        "bare, ms a step",
        "loop / bare",
        "dispatched ahead, share of a step",
        "compilations after the first step",
    )
    row = (arguments.size, arguments.family, f"{loop * 1e3:.1f}", f"{bare * 1e3:.1f}", f"{loop / bare:.3f}")
    ahead = f"{median(measured.ahead) / loop:.2f}"
    text = f"{machine('jax')}\n\n{markdown(header, [(*row, ahead, measured.compilations)])}"
    print(text)
    if arguments.publish:
        publish("loop_overhead", text)


def measure(arguments: Arguments, folder: Path) -> Measured:
    """Alternates blocks of both kinds; files go to `folder`."""
    experiment = _experiment(arguments, folder)
    run = RunDirectory(folder / "run")
    run.open(experiment)
    parts = assemble(experiment, folder / "cache")
    compilations: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compilations.append(event) if event == COMPILATION else None
    )
    loop_seconds, bare_seconds, compiled_at_first = [], [], 0
    with parts.programs.activated(), _attached(parts, run) as attached:
        batches = map(parts.place, parts.dataset.train_iterator(0, *parts.share))
        batch = next(batches)
        state, step, ahead = parts.initial_state(), 0, Ahead(parts.programs.step)
        for number in range(arguments.rounds + 1):
            start = time.perf_counter()
            state = train(state, ahead.step, batches, [ahead, *attached], step, step + arguments.block)
            jax.block_until_ready(state)
            between = time.perf_counter()
            waited = None
            for _ in range(arguments.block):
                state, report = parts.programs.step(state, batch)
                jax.block_until_ready(waited)
                waited = report
            jax.block_until_ready((state, report))
            end = time.perf_counter()
            step += arguments.block
            if number == 0:
                compiled_at_first = len(compilations)
                ahead.seconds.clear()
                continue
            loop_seconds.append((between - start) / arguments.block)
            bare_seconds.append((end - between) / arguments.block)
    # The last step of a block is followed by none.
    between_steps = [s for i, s in enumerate(ahead.seconds, 1) if i % arguments.block]
    return Measured(loop_seconds, bare_seconds, len(compilations) - compiled_at_first, between_steps)


def _experiment(arguments: Arguments, folder: Path) -> Experiment:
    size = SIZES[arguments.size]
    text = folder / "text.txt"
    letters = np.random.default_rng(0).choice(list("etaoin shrdlu\n"), 1_000_000)
    text.write_text("".join(letters), encoding="utf-8")
    return Experiment(
        name="loop_overhead",
        steps=2 * (arguments.rounds + 1) * arguments.block,
        tokenizer=ByteTokenizerConfig(),
        data=DataConfig(
            CorpusConfig(TextFilesConfig((str(text),)), split=RangeSplit(validation=0.1)),
            sequence_length=size.length,
            batch_size=size.batch,
        ),
        model=our_config(arguments.family, dataclasses.replace(size, vocab_size=max(size.vocab_size, 512))),
        optimizer=AdamWConfig(peak_lr=1e-4),
    )


@contextlib.contextmanager
def _attached(parts: Assembly, run: RunDirectory) -> Iterator[list[Hook]]:
    """The hooks of a run, with evaluations and saves that are never due."""
    experiment, never = parts.experiment, 10**9
    data = experiment.data
    throughput = hooks.Throughput(
        data.batch_size * data.sequence_length,
        count.training_flops(experiment.model, data.sequence_length),
        peak_flops=None,
    )
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.closing(hooks.Recorder(run, experiment.trackers)) as recorder,
        hooks.Display(0, experiment.steps, experiment.log_every, Console(file=nowhere, force_terminal=True)) as display,
        hooks.StopOnSignal() as signals,
    ):
        log = hooks.Log(recorder, display, throughput, experiment.log_every)
        save = hooks.Save(lambda step, state: None, lambda: None, every=never, first=never)
        # A plain Hook stands where evaluation stands: the real one would evaluate at the end of every block.
        yield [log, Hook(), save, signals]


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=Path(__file__).name + ": " + __doc__))

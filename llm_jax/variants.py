"""Variants of an experiment: trains them with several seeds, and compares their step times."""

import dataclasses
import itertools
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from llm_jax.analysis.ablation import Results, Unfinished
from llm_jax.analysis.runs import Run, load_run
from llm_jax.assemble import experiment_programs
from llm_jax.checkpoints.restore import saved_steps
from llm_jax.core.checks import check_positive
from llm_jax.core.run_directory import RunDirectory
from llm_jax.core.run_lock import RunHeld
from llm_jax.core.source import SourceCode
from llm_jax.data.examples import Row
from llm_jax.data.feed import global_batch
from llm_jax.data.row_source import AnyExamples
from llm_jax.experiment import Experiment
from llm_jax.resumption import check_run
from llm_jax.sharding.partition import Layout
from llm_jax.training_run import run_training

WARM_UP = 2
"""Number of untimed steps of each variant before measuring."""


def run_variants(
    variants: dict[str, Experiment], seeds: int, folder: Path, cache: Path, source: SourceCode | None = None
) -> tuple[Results, list[Unfinished]]:
    """Trains each variant with seeds 0 to `seeds` - 1 in `folder`/<variant>-<seed>. Complete runs are not repeated.

    All variants of a seed are trained before the next seed, so that results can be compared after an interruption. A
    run that diverges or fails does not stop the others. A diverged run is not trained again, because it would diverge
    again. A run during which this command was killed is trained after all others. If it is killed twice without a new
    checkpoint, its result is 'killed'. To train a run from the beginning, delete its folder.

    Args:
      source: the user's files that define the variants; None: those that define their types.

    Raises:
      ValueError: if a folder holds a run of another experiment, or of other code.
      SystemExit: if a signal stops one of the runs, after it is saved.
    """
    check_positive(seeds=seeds)
    cells = [_Cell(name, seed, one, folder, source) for seed in range(seeds) for name, one in variants.items()]
    for cell in cells:
        check_run(cell.run, cell.experiment, cell.source)
    console, found = Console(stderr=True), {}
    for number, cell in enumerate(sorted(cells, key=lambda cell: cell.kills > 0), 1):
        console.print(f"[bold]{cell.variant}, seed {cell.seed}[/] ({number} of {len(cells)})")
        found[cell] = one = cell.result(cache)
        if isinstance(one, Unfinished):
            console.print(f"{one.variant}, seed {one.seed}: {one.how} ({one.why})", markup=False, highlight=False)
    complete = {name: [found[cell] for cell in cells if cell.variant == name] for name in variants}
    complete = {name: [one for one in runs if isinstance(one, Run)] for name, runs in complete.items()}
    unfinished = [found[cell] for cell in cells if isinstance(found[cell], Unfinished)]
    return {name: runs for name, runs in complete.items() if runs}, unfinished


class _Cell:
    """One variant with one seed."""

    def __init__(self, variant: str, seed: int, experiment: Experiment, folder: Path, source: SourceCode | None):
        self.variant, self.seed, self._folder = variant, seed, folder
        self.source = SourceCode.of(experiment) if source is None else source
        self.experiment = dataclasses.replace(experiment, seed=seed, name=f"{variant}-{seed}")
        self.run = RunDirectory(folder / self.experiment.name)
        self._starts, _ = self.run.read_card()

    @property
    def kills(self) -> int:
        """How many starts since the last new checkpoint ended without an entry on the card, that is, by a kill."""
        silent = list(itertools.takewhile(lambda start: "ended" not in start, reversed(self._starts)))
        return 0 if self._is_complete() else sum(start.get("resumed_from") == self._saved() for start in silent)

    def result(self, cache: Path) -> Run | Unfinished:
        """Trains the run, unless it has diverged or was killed repeatedly. Returns its result.

        Raises:
          SystemExit: if a signal stops it.
        """
        ended = self._starts[-1].get("ended", {}) if self._starts else {}
        if ended.get("how") == "diverged":
            return self._unfinished("diverged", ended.get("why", ""))
        if self.kills > 1:
            return self._unfinished("killed", f"{self.kills} times in the same place, such as for want of memory")
        try:
            run_training(self.experiment, self._folder, cache, source=self.source)
        except FloatingPointError as error:
            return self._unfinished("diverged", str(error))
        except RunHeld as error:
            return self._unfinished("running", str(error))
        except Exception as error:
            if not isinstance(error, ValueError | OSError):
                traceback.print_exc()
            return self._unfinished("failed", f"{type(error).__name__}: {error}")
        if not self._is_complete():
            # A signal stopped the run, so the next run must not start.
            raise SystemExit(f"stopped in {self.variant}, seed {self.seed}: the same command continues from there")
        return load_run(self.run.path)

    def _unfinished(self, how: str, why: str) -> Unfinished:
        return Unfinished(self.variant, self.seed, how, self._saved() or 0, " ".join(why.split()))

    def _saved(self) -> int | None:
        return max(saved_steps(self.run.checkpoints), default=None)

    def _is_complete(self) -> bool:
        return (self._saved() or 0) >= self.experiment.steps


def update_seconds(variants: dict[str, Experiment], rounds: int = 7) -> dict[str, float]:
    """Median time in seconds of a training step of each variant on this process's devices, measured alternately.

    Weights and tokens are random, so that the load of experts is that at the beginning of training.
    """
    calls = {name: _updates(one) for name, one in variants.items()}
    seconds = {name: [] for name in calls}
    for turn in range(WARM_UP + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name] += [time.perf_counter() - start] if turn >= WARM_UP else []
    return {name: float(np.median(found)) for name, found in seconds.items()}


def _updates(one: Experiment) -> Callable[[], None]:
    """A function that runs one training step of a newly initialised model and waits for it."""
    layout = Layout.of(one.sharding)
    made = experiment_programs(one, layout)
    length, generator = one.data.sequence_length, np.random.default_rng(0)
    examples = one.objective.examples(one.model, None, length)
    words = (one.model.vocab_size or 0) - len(one.objective.special_tokens(length))
    drawn = [_random_row(examples, length + 1, words, generator) for _ in range(one.data.batch_size)]
    rows = [examples.row(row, generator) for row in drawn]
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    batch, state = global_batch(one.objective.batch(stacked), layout.rows), [made.fresh()]

    def call() -> None:
        with made.activated():
            state[0], told = made.step(state[0], batch)
            jax.block_until_ready(told)

    return call


def _random_row(examples: AnyExamples, length: int, words: int, generator: np.random.Generator) -> Row:
    """A row of one document of random tokens below `words`."""
    row = examples.padding(length)
    for name, array in row.items():
        if name.endswith("tokens"):
            row[name] = generator.integers(0, words, array.shape, dtype=np.int32)
        elif name.endswith("segment_ids"):
            row[name] = np.ones_like(array)
        elif name.endswith("positions"):
            row[name] = np.arange(len(array), dtype=np.int32)
    return row

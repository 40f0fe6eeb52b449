"""Variants of an experiment: trained with several seeds, and their updates timed side by side."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from llm_jax.analysis.ablation import Results
from llm_jax.analysis.runs import load_run
from llm_jax.assemble import experiment_programs
from llm_jax.checkpoints.restore import saved_steps
from llm_jax.core.checks import check_positive
from llm_jax.data.feed import global_batch
from llm_jax.experiment import Experiment
from llm_jax.sharding.partition import Layout
from llm_jax.training_run import run_training

WARM_UP = 2
"""Updates of each variant before its time is taken."""


def run_variants(variants: dict[str, Experiment], seeds: int, folder: Path, cache: Path) -> Results:
    """Trains each variant with seeds 0 to `seeds` - 1 in `folder`/<variant>-<seed>; those that are trained stay.

    All variants come before the next seed, so that what was done until an interruption can be compared.

    Raises:
      ValueError: if a folder holds a run of another experiment.
      SystemExit: if a signal stops one of the runs, which then is saved.
    """
    check_positive(seeds=seeds)
    console, results = Console(stderr=True), {name: [] for name in variants}
    for number in range(seeds * len(variants)):
        seed, name = number // len(variants), list(variants)[number % len(variants)]
        console.print(f"[bold]{name}, seed {seed}[/] ({number + 1} of {seeds * len(variants)})")
        experiment = dataclasses.replace(variants[name], seed=seed, name=f"{name}-{seed}")
        run = run_training(experiment, folder, cache)
        if max(saved_steps(run.checkpoints), default=0) < experiment.steps:
            # A signal asked the run to end; it is not for the next one to begin.
            raise SystemExit(f"stopped in {name}, seed {seed}: the same command goes on from there")
        results[name].append(load_run(run.path))
    return results


def update_seconds(variants: dict[str, Experiment], rounds: int = 7) -> dict[str, float]:
    """Median time of an update of each variant on this process's devices, from updates taken in turn.

    The weights are fresh and the tokens drawn at random: the load of experts is that of the beginning of training.
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
    """A function that makes one update of a fresh model and waits for it."""
    layout = Layout.of(one.sharding)
    made = experiment_programs(one, layout)
    shape = (one.data.batch_size, one.data.sequence_length + 1)
    tokens = np.random.default_rng(0).integers(0, one.model.vocab_size, shape, dtype=np.int32)
    places = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    rows = {"tokens": tokens, "segment_ids": np.ones_like(tokens), "positions": places}
    batch, state = global_batch(one.objective.batch(rows), layout.rows), [made.fresh()]

    def call() -> None:
        with made.activated():
            state[0], told = made.step(state[0], batch)
            jax.block_until_ready(told)

    return call

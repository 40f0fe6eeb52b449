"""Variants of an experiment, trained with several seeds."""

import dataclasses
from pathlib import Path

from rich.console import Console

from llm_jax.analysis.ablation import Results
from llm_jax.analysis.runs import load_run
from llm_jax.assemble import run_training
from llm_jax.checkpoints.restore import saved_steps
from llm_jax.core.checks import check_positive
from llm_jax.experiment import Experiment


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

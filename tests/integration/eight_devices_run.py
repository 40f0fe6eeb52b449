"""Run by test_eight_devices.py: whole runs of one experiment in several layouts over eight simulated devices.

Usage: eight_devices_run.py FOLDER. Prints {layout: facts} as JSON.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import jax

from llm_jax import assemble
from llm_jax.checkpoints.restore import restore_state
from llm_jax.core import garbage
from llm_jax.core.trees import size_bytes
from llm_jax.experiment import Experiment
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.rules import (
    DataParallel,
    FullySharded,
    PipelineParallel,
    ShardingConfig,
)
from llm_jax.starts import FrozenModel, RunStart
from llm_jax.training_run import run_training
from tests.helpers import tiny_run
from tests.helpers.distillation import DistillationConfig

LAYOUTS = {
    "data": ShardingConfig(MeshConfig(data=8), DataParallel()),
    "fsdp": ShardingConfig(MeshConfig(data=2, fsdp=4), FullySharded()),
    "pipeline": ShardingConfig(MeshConfig(data=4, stage=2), PipelineParallel(2)),
}


def experiment_of(folder: Path, **changes: Any) -> Experiment:
    """The experiment of all runs."""
    default = tiny_run.experiment(folder, steps=6, **changes)
    return dataclasses.replace(default, data=dataclasses.replace(default.data, batch_size=16))


def student(folder: Path, runs: Path) -> Experiment:
    """A student of the run `data` in `runs`."""
    teacher = FrozenModel(
        name="teacher", model=tiny_run.experiment(folder).model, start=RunStart(run=str(runs / "data"))
    )
    return experiment_of(folder, name="student", objective=DistillationConfig(), frozen=(teacher,))


def facts(folder: Path, experiment: Experiment) -> dict[str, Any]:
    """Trains a run; its losses and how its state is divided, read back into its own layout."""
    run = run_training(experiment, folder / "runs", folder / "cache")
    parts = assemble.assemble(experiment, folder / "cache")
    state = restore_state(run.checkpoints.absolute(), parts.programs.abstract_state, parts.tokenizer.digest).state
    losses = [record["loss"] for record in run.records()]
    return {
        "losses": losses,
        "held": _held(state),
        "bytes": size_bytes(state),
        "frozen_held": _held(state.frozen),
        "frozen_bytes": size_bytes(state.frozen),
        "devices": parts.layout.mesh.size,
        "pipeline": run.card()["starts"][0]["pipeline"],
    }


def _held(tree: Any) -> int:
    """Bytes on the first device."""
    first = jax.devices()[0]
    shards = (shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards)
    return sum(shard.data.nbytes for shard in shards if shard.device == first)


def resumed_elsewhere(folder: Path) -> dict[str, Any]:
    """The losses of the FSDP run's last updates, made again from its checkpoint of step 5 under data parallelism."""
    sharding = LAYOUTS["data"]
    experiment = experiment_of(folder, name="fsdp", sharding=sharding)
    parts = assemble.assemble(experiment, folder / "cache")
    run = folder / "runs" / "fsdp" / "checkpoints"
    with parts.programs.activated():
        restored = restore_state(run.absolute(), parts.programs.abstract_state, parts.tokenizer.digest, 5)
        rows = parts.dataset.train_iterator()
        rows.set_state(restored.data)
        _, report = parts.programs.step(restored.state, parts.place(next(rows)))
    return {"loss": float(report.metrics["loss"].mean), "step": restored.step}


def main(folder: Path) -> None:
    """Prints all facts."""
    tiny_run.write_corpus(folder)
    make = assemble.programs
    cached = functools.cache(lambda frozen, *arguments: make(*arguments, dict(frozen)))
    assemble.programs = lambda *given: cached(tuple(given[-1].items()), *given[:-1])
    runs = {name: experiment_of(folder, name=name, sharding=sharding) for name, sharding in LAYOUTS.items()}
    runs["student"] = dataclasses.replace(student(folder, folder / "runs"), sharding=LAYOUTS["fsdp"])
    found = {name: facts(folder, experiment) for name, experiment in runs.items()}
    print(json.dumps(found | {"resumed": resumed_elsewhere(folder)}))


if __name__ == "__main__":
    garbage.postpone()
    main(Path(sys.argv[1]))

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
from llm_jax.core.trees import size_bytes
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.rules import DataParallel, FullySharded, PipelineParallel, ShardingConfig
from llm_jax.training_run import run_training
from tests.helpers import tiny_run

LAYOUTS = {
    "data": ShardingConfig(MeshConfig(data=8), DataParallel()),
    "fsdp": ShardingConfig(MeshConfig(data=2, fsdp=4), FullySharded()),
    "pipeline": ShardingConfig(MeshConfig(data=4, stage=2), PipelineParallel(2)),
}


def facts(folder: Path, sharding: ShardingConfig, name: str) -> dict[str, Any]:
    """Trains a run; its losses and how its state is divided, read back into its own layout."""
    experiment = tiny_run.experiment(folder, steps=6, name=name, sharding=sharding)
    experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, batch_size=16))
    run = run_training(experiment, folder / "runs", folder / "cache")
    parts = assemble.assemble(experiment, folder / "cache")
    state = restore_state(run.checkpoints.absolute(), parts.programs.abstract_state, parts.tokenizer.digest).state
    first = jax.devices()[0]
    held = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(state)
        for shard in leaf.addressable_shards
        if shard.device == first
    )
    losses = [record["loss"] for record in run.records()]
    return {
        "losses": losses,
        "held": held,
        "bytes": size_bytes(state),
        "devices": parts.layout.mesh.size,
        "pipeline": run.card()["starts"][0]["pipeline"],
    }


def resumed_elsewhere(folder: Path) -> dict[str, Any]:
    """The losses of the FSDP run's last updates, made again from its checkpoint of step 5 under data parallelism."""
    sharding = LAYOUTS["data"]
    experiment = tiny_run.experiment(folder, steps=6, name="fsdp", sharding=sharding)
    experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, batch_size=16))
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
    assemble.programs = functools.cache(assemble.programs)
    found = {name: facts(folder, sharding, name) for name, sharding in LAYOUTS.items()}
    print(json.dumps(found | {"resumed": resumed_elsewhere(folder)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The run directory: the only thing a run leaves behind, and the only thing that analysis reads.

runs/<name>/experiment.txt   resolved experiment, flat text      card.json      what made the run
            metrics.jsonl    one JSON object per record           checkpoints/   samples/
            tensorboard/     the same curves as event files       report.md      report and its plots
"""

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from llm_jax.core import config
from llm_jax.core.checks import check
from llm_jax.core.files import write_atomically


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """Paths and small files of one run."""

    path: Path

    @property
    def experiment_file(self) -> Path:
        return self.path / "experiment.txt"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def report(self) -> Path:
        return self.path / "report.md"

    def open(self, experiment: Any, free: str | None = None) -> None:
        """Makes the directory for `experiment`, or accepts it if it already holds the same experiment.

        An experiment that has left neither metrics nor checkpoints, since it could not start, gives way to another.

        Args:
          free: field in which the experiments may differ; the file then says what `experiment` has there.

        Raises:
          ValueError: if the directory holds another experiment, or cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self._has_begun():
                self._check_same(experiment, free)
            write_atomically(self.experiment_file, config.to_text(experiment))
        except OSError as error:
            raise ValueError(
                f"run directory {self.path} cannot be written ({error.strerror or error}): "
                "choose another place with --runs-dir, or make this one writable"
            ) from error

    def delete(self) -> None:
        """Deletes the run with everything in it; nothing happens if there is none.

        Raises:
          ValueError: if the path holds something that is no run.
        """
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        check(
            self.experiment_file.exists(),
            f"{self.path} is not a run directory, so it is not deleted; give the run another --name",
        )
        shutil.rmtree(self.path)

    def experiment(self) -> Any:
        """The experiment this run was made from."""
        if not self.experiment_file.exists():
            raise ValueError(f"{self.path} is not a run directory: it has no {self.experiment_file.name}")
        return config.parse(self.experiment_file.read_text(encoding="utf-8"))

    def write_card(self, **facts: Any) -> None:
        """Writes card.json; each (re)start of the run adds itself to its list `starts`."""
        starts = self.card().get("starts", [])
        write_atomically(self._card_file, json.dumps({"starts": [*starts, facts]}, indent=2) + "\n")

    def card(self) -> dict[str, Any]:
        return json.loads(self._card_file.read_text(encoding="utf-8")) if self._card_file.exists() else {}

    def records(self) -> Iterator[dict[str, Any]]:
        """Metric records in the order of steps. A resumed run repeats the steps since its last save: the last one
        written of each (kind, step) counts. A line cut short by a crash is passed over."""
        if not self.metrics_file.exists():
            return
        latest: dict[tuple, dict] = {}
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            latest[record["kind"], record["step"]] = record
        yield from sorted(latest.values(), key=lambda record: record["step"])

    def write_tokenizer(self, tokenizer: Any) -> None:
        """Keeps a `tokenizers.Tokenizer` with the run."""
        tokenizer.save(self.tokenizer)

    def write_sample(self, step: int, text: str) -> None:
        """Keeps what the model wrote after update `step`."""
        self.samples.mkdir(exist_ok=True)
        write_atomically(self.samples / f"step_{step:08d}.md", text)

    @property
    def _card_file(self) -> Path:
        return self.path / "card.json"

    def _has_begun(self) -> bool:
        saved = self.checkpoints.is_dir() and any(self.checkpoints.iterdir())
        return self.experiment_file.exists() and (saved or self.metrics_file.exists())

    def _check_same(self, experiment: Any, free: str | None) -> None:
        changes = config.diff(self.experiment(), experiment)
        if changes := [line for line in changes if free is None or line.partition(":")[0].split(".")[0] != free]:
            listed = "\n  ".join(changes)
            raise ValueError(
                f"{self.path} already holds a run of another experiment; what changed:\n  {listed}\n"
                "Give the new run another --name, or pass --fresh to delete the old one."
            )


class FollowedRun(RunDirectory):
    """A run as the hosts beside the first have it: they read it, save their part of its checkpoints, and write nothing
    else."""

    def open(self, experiment: Any, free: str | None = None) -> None:
        """The first host opens it."""

    def delete(self) -> None:
        """The first host deletes it."""

    def write_card(self, **facts: Any) -> None:
        """The first host writes it."""

    def write_tokenizer(self, tokenizer: Any) -> None:
        """The first host writes it."""

    def write_sample(self, step: int, text: str) -> None:
        """The first host writes it."""


def machine_card() -> dict[str, Any]:
    """What a reader needs to judge a figure of this run: code, versions, devices."""
    devices = jax.devices()
    return {
        "commit": _git_commit(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "platform": platform.platform(),
        "host_cores": os.cpu_count(),
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "command": sys.argv,
    }


def _git_commit() -> str | None:
    """Commit of the code that runs, with '+' if files differ from it; None outside a git checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")

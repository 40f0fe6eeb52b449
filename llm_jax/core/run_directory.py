"""The run directory: it holds everything that a run writes, and analysis reads nothing else.

runs/<name>/experiment.txt   resolved experiment, flat text      card.json      code, versions and data of each start
            source/          the user's files that define it
            metrics.jsonl    one JSON object per record           checkpoints/   samples/
            tensorboard/     the same curves as event files       report.md      report and its plots
            lock.json        the process that is training it
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from llm_jax.core import config_text, records, source
from llm_jax.core.checks import check
from llm_jax.core.files import remove, unused, write_atomically
from llm_jax.core.object_lock import ObjectLock
from llm_jax.core.paths import is_object
from llm_jax.core.run_lock import RunLock
from llm_jax.core.source import SourceCode


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """Paths and small files of one run."""

    path: Path
    """A path from `paths.at`."""

    @property
    def experiment_file(self) -> Path:
        return self.path / "experiment.txt"

    @property
    def source(self) -> Path:
        """The user's Python files that define the experiment (see `core.source`)."""
        return self.path / "source"

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

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def card_file(self) -> Path:
        return self.path / "card.json"

    @property
    def lock_file(self) -> Path:
        return self.path / "lock.json"

    @contextlib.contextmanager
    def locked(self, say: Callable[[str], None]) -> Iterator[RunLock | ObjectLock]:
        """Creates the directory and holds its lock, so that no other process writes to it.

        Args:
          say: shows a line to the user while this process waits for another.

        Raises:
          RunHeld: if another process holds the lock.
          ValueError: if the directory cannot be written.
        """
        lock = (ObjectLock if is_object(self.path) else RunLock)(self.lock_file)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.take(say)
        except OSError as error:
            raise ValueError(self._not_writable(error)) from error
        try:
            yield lock
        finally:
            lock.release()

    def open(self, experiment: Any) -> None:
        """Creates the directory if it does not exist, and writes the experiment into it.

        Raises:
          ValueError: if it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_experiment(config_text.to_text(experiment))
        except OSError as error:
            raise ValueError(self._not_writable(error)) from error

    def write_experiment(self, text: str) -> None:
        """Writes experiment.txt."""
        write_atomically(self.experiment_file, text)

    @property
    def has_begun(self) -> bool:
        """Whether the directory has metrics or checkpoints."""
        saved = self.checkpoints.is_dir() and any(self.checkpoints.iterdir())
        return saved or self.metrics_file.exists()

    def delete(self) -> None:
        """Deletes the run with everything in it except the lock. Does nothing if it does not exist.

        Raises:
          ValueError: if the path is not a run directory.
        """
        if not self.path.is_dir():
            return
        found = [path for path in self.path.iterdir() if not path.name.startswith(self.lock_file.name)]
        files = [getattr(self, name) for name in _OWN]
        check(
            self.experiment_file.exists() or all(path in files for path in found),
            f"{self.path} is not a run directory, so it is not deleted; give the run another --name",
        )
        # experiment.txt is deleted last, so that after a kill the directory is still recognised as a run.
        for path in sorted(found, key=lambda path: path == self.experiment_file):
            remove(path)

    def experiment_text(self) -> str:
        """The flat text of the experiment.

        Raises:
          ValueError: if the file is missing, or disagrees with its digest on the card.
        """
        file = self.experiment_file
        if not file.exists():
            raise ValueError(f"{self.path} is not a run directory: it has no {file.name}")
        text = file.read_bytes().decode(errors="replace")
        starts, _ = self.read_card()
        digests = {start["experiment_digest"] for start in starts if "experiment_digest" in start}
        check(
            not digests or hashlib.sha256(text.encode()).hexdigest()[:16] in digests,
            f"{file} is damaged: its digest differs from that in {self.card_file.name}. Run the training command "
            "again: it writes the file anew from the newest checkpoint",
        )
        return text

    def experiment(self) -> Any:
        """The experiment of this run."""
        try:
            return self.parsed(self.experiment_text())
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.experiment_file} cannot be read: {error}") from error

    def parsed(self, text: str) -> Any:
        """The config of a flat text that the run wrote. User-defined types are imported from `source`."""
        with self.own_types(text):
            return config_text.parse(text)

    def own_types(self, text: str) -> contextlib.AbstractContextManager[None]:
        """Context manager in which user-defined types are imported from `source`, if the flat text of the experiment
        names any."""
        return source.loaded(self.source) if config_text.names_own_types(text) else contextlib.nullcontext()

    def write_source(self, found: SourceCode) -> None:
        """Writes the user's files into `source`. A former `source` with other files is renamed to `source-<digest>`."""
        with contextlib.suppress(ValueError):  # damaged files are replaced
            former = SourceCode.read(self.source)
            if former is not None and former.digest != found.digest:
                self.source.rename(unused(self.path / f"source-{former.digest}"))
        if found.modules:
            found.write(self.source)

    def write_card(self, **facts: Any) -> None:
        """Adds an entry for this start of the run to the list `starts` of card.json. A damaged file is renamed and
        kept."""
        starts, damage = self.read_card()
        if damage:
            self.card_file.rename(unused(self.path / f"{self.card_file.stem}.damaged.json"))
        self._write_card([*starts, facts])

    def end_card(self, how: str, why: str = "") -> None:
        """Records on the card how the last start of the run ended. A start without this entry was killed."""
        starts, _ = self.read_card()
        ended = {"how": how, "why": why}
        if starts and starts[-1].get("ended") != ended:
            self._write_card([*starts[:-1], starts[-1] | {"ended": ended}])

    def card(self) -> dict[str, Any]:
        """The content of card.json; empty if there is no such file.

        Raises:
          ValueError: if the file is damaged.
        """
        starts, damage = self.read_card()
        check(not damage, damage)
        return {"starts": starts} if self.card_file.exists() else {}

    def read_card(self) -> tuple[list[dict[str, Any]], str]:
        """The starts on card.json, and a message if the file is damaged, otherwise ''."""
        if not self.card_file.exists():
            return [], ""
        try:
            found = json.loads(self.card_file.read_bytes().decode())
            if all(isinstance(start, dict) for start in found["starts"]):
                return list(found["starts"]), ""
            problem = "'starts' is no list of JSON objects"
        except (ValueError, RecursionError, TypeError, KeyError) as error:
            problem = f"no JSON object with a list 'starts': {type(error).__name__} {str(error)[:80]}"
        return [], f"{self.card_file} is damaged ({problem})"

    def records(self) -> Iterator[dict[str, Any]]:
        """Metric records in the order of steps, from `records.read`."""
        yield from records.read(self.metrics_file)[0]

    def damage(self) -> list[str]:
        """Damage in the files that analysis reads, one message for each location."""
        return [*filter(None, [self.read_card()[1]]), *records.read(self.metrics_file)[1]]

    def set_aside_after(self, step: int) -> list[Path]:
        """Moves records and samples of steps after `step` to other files, and returns their paths."""
        moved = [path for path in [records.split(self.metrics_file, step)] if path]
        for sample in sorted(self.samples.glob("step_*.md")):
            number = sample.stem.removeprefix("step_")
            if number.isdecimal() and int(number) > step:
                moved.append(sample.rename(unused(sample.with_name(f"later-{sample.name}"))))
        return moved

    def small_files(self) -> dict[Path, bytes]:
        """Contents of the files that a start of the run writes, for `put_back`."""
        files = [self.experiment_file, self.card_file, *self.tokenizer.glob("*"), *self.source.rglob("*")]
        return {path: path.read_bytes() for path in files if path.is_file()}

    def put_back(self, files: Mapping[Path, bytes]) -> None:
        """Writes the files again that were deleted meanwhile."""
        for path, content in files.items():
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, content)

    def write_tokenizer(self, tokenizer: Any) -> None:
        """Saves a `tokenizers.Tokenizer` in the run directory."""
        tokenizer.save(self.tokenizer)

    def write_sample(self, step: int, text: str) -> None:
        """Writes the text that was sampled from the model after `step`."""
        self.samples.mkdir(exist_ok=True, parents=True)
        write_atomically(self.samples / f"step_{step:08d}.md", text)

    def _write_card(self, starts: list[dict[str, Any]]) -> None:
        write_atomically(self.card_file, json.dumps({"starts": starts}, indent=2) + "\n")

    def _not_writable(self, error: OSError) -> str:
        return (
            f"run directory {self.path} cannot be written ({error.strerror or error}): "
            "choose another place with --runs-dir, or make this one writable"
        )


_OWN = (
    "experiment_file",
    "card_file",
    "metrics_file",
    "checkpoints",
    "samples",
    "tensorboard",
    "source",
    "tokenizer",
    "report",
    "plots",
)
"""Properties of a run directory with the paths that a run writes."""


class ReadOnlyRun(RunDirectory):
    """The run directory for all processes but the first. They read it and save their shards of its checkpoints, but
    write nothing else."""

    @contextlib.contextmanager
    def locked(self, say: Callable[[str], None]) -> Iterator[RunLock]:
        """Does not take the lock: the first process has it, and ends the others if it loses it."""
        yield RunLock(self.lock_file)

    def open(self, experiment: Any) -> None:
        """Does nothing: the first process opens it."""

    def delete(self) -> None:
        """Does nothing: the first process deletes it."""

    def write_experiment(self, text: str) -> None:
        """Does nothing: the first process writes it."""

    def write_card(self, **facts: Any) -> None:
        """Does nothing: the first process writes it."""

    def end_card(self, how: str, why: str = "") -> None:
        """Does nothing: the first process writes it."""

    def write_source(self, found: SourceCode) -> None:
        """Does nothing: the first process writes them."""

    def set_aside_after(self, step: int) -> list[Path]:
        """Does nothing: the first process moves them."""
        return []

    def put_back(self, files: Mapping[Path, bytes]) -> None:
        """Does nothing: the first process writes them."""

    def write_tokenizer(self, tokenizer: Any) -> None:
        """Does nothing: the first process writes it."""

    def write_sample(self, step: int, text: str) -> None:
        """Does nothing: the first process writes it."""


def machine_card() -> dict[str, Any]:
    """Commit, versions, devices and command of this process, for the run card."""
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
    """Commit of the running code, with '+' if files differ from it; None outside of a git checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")

"""The run directory: the only thing a run leaves behind, and the only thing that analysis reads.

runs/<name>/experiment.txt   resolved experiment, flat text      card.json      what made the run
            source/          the user's own files that define it
            metrics.jsonl    one JSON object per record           checkpoints/   samples/
            tensorboard/     the same curves as event files       report.md      report and its plots
            lock.json        the process that trains it, while one does
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

from llm_jax.core import config, records, source
from llm_jax.core.checks import check
from llm_jax.core.files import remove, unused, write_atomically
from llm_jax.core.object_lock import ObjectLock
from llm_jax.core.paths import is_object
from llm_jax.core.run_lock import RunLock
from llm_jax.core.source import Source


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """Paths and small files of one run."""

    path: Path
    """As `paths.at` gives it."""

    @property
    def experiment_file(self) -> Path:
        return self.path / "experiment.txt"

    @property
    def source(self) -> Path:
        """The user's own Python files that define the experiment (see `core.source`)."""
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
        """Makes the directory and keeps other processes from writing to it.

        Args:
          say: shows a line to the user while this process waits for another.

        Raises:
          RunHeld: if another process has it.
          ValueError: if it cannot be written.
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
        """Makes the directory if there is none, and writes the experiment into it.

        Raises:
          ValueError: if it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_experiment(config.to_text(experiment))
        except OSError as error:
            raise ValueError(self._not_writable(error)) from error

    def write_experiment(self, text: str) -> None:
        """Writes experiment.txt."""
        write_atomically(self.experiment_file, text)

    @property
    def has_begun(self) -> bool:
        """Whether an experiment has left metrics or checkpoints here."""
        saved = self.checkpoints.is_dir() and any(self.checkpoints.iterdir())
        return saved or self.metrics_file.exists()

    def delete(self) -> None:
        """Deletes the run with everything in it but the lock; nothing happens if there is none.

        Raises:
          ValueError: if the path holds something that is no run.
        """
        if not self.path.is_dir():
            return
        found = [path for path in self.path.iterdir() if not path.name.startswith(self.lock_file.name)]
        files = [getattr(self, name) for name in _OWN]
        check(
            self.experiment_file.exists() or all(path in files for path in found),
            f"{self.path} is not a run directory, so it is not deleted; give the run another --name",
        )
        # The file that makes it a run goes last, lest a kill leave something that no command knows.
        for path in sorted(found, key=lambda path: path == self.experiment_file):
            remove(path)

    def experiment_text(self) -> str:
        """The flat text of the experiment.

        Raises:
          ValueError: if the file is missing, or is damaged by what the card says of it.
        """
        file = self.experiment_file
        if not file.exists():
            raise ValueError(f"{self.path} is not a run directory: it has no {file.name}")
        text = file.read_bytes().decode(errors="replace")
        starts, _ = self.read_card()
        digests = {start["experiment_digest"] for start in starts if "experiment_digest" in start}
        check(
            not digests or hashlib.sha256(text.encode()).hexdigest()[:16] in digests,
            f"{file} is damaged: it is not the experiment that {self.card_file.name} names by its digest. The command "
            "that trained the run writes it again, from the newest checkpoint",
        )
        return text

    def experiment(self) -> Any:
        """The experiment this run was made from."""
        try:
            return self.parsed(self.experiment_text())
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.experiment_file} cannot be read: {error}") from error

    def parsed(self, text: str) -> Any:
        """The config of a flat text that the run wrote. Types of a user's own are those of the files in `source`."""
        with self.own_types(text):
            return config.parse(text)

    def own_types(self, text: str) -> contextlib.AbstractContextManager[None]:
        """Context in which types of a user's own are imported from `source`, where the flat text of the experiment
        names any."""
        return source.loaded(self.source) if config.names_own_types(text) else contextlib.nullcontext()

    def write_source(self, found: Source) -> None:
        """Writes the user's own files into `source`. Other ones that are there are kept beside it, by their digest."""
        with contextlib.suppress(ValueError):  # damaged files are replaced
            former = Source.read(self.source)
            if former is not None and former.digest != found.digest:
                self.source.rename(unused(self.path / f"source-{former.digest}"))
        if found.modules:
            found.write(self.source)

    def write_card(self, **facts: Any) -> None:
        """Writes card.json; each (re)start of the run adds itself to its list `starts`. A damaged file is kept beside
        it."""
        starts, damage = self.read_card()
        if damage:
            self.card_file.rename(unused(self.path / f"{self.card_file.stem}.damaged.json"))
        self._write_card([*starts, facts])

    def end_card(self, how: str, why: str = "") -> None:
        """Notes on the card how the last start of the run has ended. A start without this note was killed."""
        starts, _ = self.read_card()
        ended = {"how": how, "why": why}
        if starts and starts[-1].get("ended") != ended:
            self._write_card([*starts[:-1], starts[-1] | {"ended": ended}])

    def card(self) -> dict[str, Any]:
        """The content of card.json; empty without one.

        Raises:
          ValueError: if the file is damaged.
        """
        starts, damage = self.read_card()
        check(not damage, damage)
        return {"starts": starts} if self.card_file.exists() else {}

    def read_card(self) -> tuple[list[dict[str, Any]], str]:
        """The starts that card.json lists, and what is wrong with the file: '' if nothing is."""
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
        """Metric records in the order of steps, as `records.read` finds them."""
        yield from records.read(self.metrics_file)[0]

    def damage(self) -> list[str]:
        """What is wrong with the files that analysis reads, one message for each place."""
        return [*filter(None, [self.read_card()[1]]), *records.read(self.metrics_file)[1]]

    def set_aside_after(self, step: int) -> list[Path]:
        """Moves records and samples of later steps to other files, and returns those."""
        moved = [path for path in [records.split(self.metrics_file, step)] if path]
        for sample in sorted(self.samples.glob("step_*.md")):
            number = sample.stem.removeprefix("step_")
            if number.isdecimal() and int(number) > step:
                moved.append(sample.rename(unused(sample.with_name(f"later-{sample.name}"))))
        return moved

    def small_files(self) -> dict[Path, bytes]:
        """Content of the files that a start of the run writes, for `put_back`."""
        files = [self.experiment_file, self.card_file, *self.tokenizer.glob("*"), *self.source.rglob("*")]
        return {path: path.read_bytes() for path in files if path.is_file()}

    def put_back(self, files: Mapping[Path, bytes]) -> None:
        """Writes those of the files again that were deleted meanwhile."""
        for path, content in files.items():
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, content)

    def write_tokenizer(self, tokenizer: Any) -> None:
        """Keeps a `tokenizers.Tokenizer` with the run."""
        tokenizer.save(self.tokenizer)

    def write_sample(self, step: int, text: str) -> None:
        """Keeps what the model wrote after update `step`."""
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
"""Properties of a run directory that name what a run leaves in it."""


class ReadOnlyRun(RunDirectory):
    """The run directory of the processes after the first: they read it, save their part of its checkpoints, and write
    nothing else."""

    @contextlib.contextmanager
    def locked(self, say: Callable[[str], None]) -> Iterator[RunLock]:
        """The first host has the lock, and ends the others if it loses it."""
        yield RunLock(self.lock_file)

    def open(self, experiment: Any) -> None:
        """The first host opens it."""

    def delete(self) -> None:
        """The first host deletes it."""

    def write_experiment(self, text: str) -> None:
        """The first host writes it."""

    def write_card(self, **facts: Any) -> None:
        """The first host writes it."""

    def end_card(self, how: str, why: str = "") -> None:
        """The first host writes it."""

    def write_source(self, found: Source) -> None:
        """The first host writes them."""

    def set_aside_after(self, step: int) -> list[Path]:
        """The first host moves them."""
        return []

    def put_back(self, files: Mapping[Path, bytes]) -> None:
        """The first host writes them."""

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

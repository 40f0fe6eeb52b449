"""TensorBoard's event files: the curves of metrics.jsonl once more."""

import importlib
import shlex
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_jax.core.configclass import configclass
from llm_jax.core.files import copy_folder
from llm_jax.core.paths import is_object
from llm_jax.core.run_directory import RunDirectory
from llm_jax.trackers.tracker import FigureWriter, TrackedRun, Tracker

_FLUSH_SECONDS = 1.0
"""Between two flushes, each of which waits for the disk."""
_UPLOAD_SECONDS = 60.0
"""Between two uploads of the whole file, where the run lies in an object store."""


@configclass
class TensorBoardConfig(Tracker):
    """Event files in the folder `tensorboard` of the run directory, with scalars '<kind>/<name>'. Each start of a run
    writes a file of its own."""

    def require(self) -> None:
        """See `Tracker`."""
        import tensorboardX.event_file_writer  # noqa: F401 - slow to import, which the first figures would wait for

    def open(self, run: TrackedRun) -> FigureWriter:
        return _EventFile(run.directory.tensorboard)

    def place(self, run: RunDirectory) -> str:
        return f"tensorboard --logdir {shlex.quote(str(run.tensorboard))} (pip install tensorboard)"


class _EventFile(FigureWriter):
    """tensorboardX's own SummaryWriter has a thread; when the disk is full it dies, and its callers wait forever.

    Where the folder is one of an object store, which cannot append, the file grows elsewhere and is copied there."""

    def __init__(self, folder: Path):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.summary import scalar

        # protobuf makes this class when the module is imported: no type checker sees it there.
        self._event: Any = importlib.import_module("tensorboardX.proto.event_pb2").Event
        self._scalar = scalar
        self._folder = folder
        self._grown = tempfile.TemporaryDirectory() if is_object(folder) else None
        place = Path(self._grown.name) if self._grown else folder
        place.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(place / "events"))
        self._seconds = _UPLOAD_SECONDS if self._grown else _FLUSH_SECONDS
        self._flushed = 0.0

    def write(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        now = time.time()
        for name, value in figures.items():
            summary = self._scalar(f"{kind}/{name}", value)
            self._file.write_event(self._event(wall_time=now, step=step, summary=summary))
        if now - self._flushed > self._seconds:
            self._file.flush()
            self._upload()
            self._flushed = now

    def close(self) -> None:
        self._file.close()
        self._upload()
        if self._grown is not None:
            self._grown.cleanup()

    def _upload(self) -> None:
        if self._grown is not None:
            copy_folder(Path(self._grown.name), self._folder)

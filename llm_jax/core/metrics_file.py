"""metrics.jsonl, open for appending: a file, or an object of an object store, which is uploaded again as it grows."""

import abc
import contextlib
import errno
import os
import threading
from pathlib import Path

from llm_jax.core import records
from llm_jax.core.paths import is_object

UPLOAD_SECONDS = 30.0
"""Time between two uploads of a growing object. A crash loses at most the records of this time."""


class MetricsFile(abc.ABC):
    """The records of a run, one per line."""

    @abc.abstractmethod
    def append(self, line: str) -> None:
        """Appends a line.

        Raises:
          OSError: if the line cannot be written. No part of it is in the file then.
        """

    @abc.abstractmethod
    def keep(self) -> None:
        """Ensures that all lines are in the file. Writes the file again if it was deleted."""

    @abc.abstractmethod
    def close(self) -> None:
        """Like `keep`, and closes the file. No lines may follow."""


def open_metrics(path: Path) -> MetricsFile:
    """Opens the file for appending, and creates it if it does not exist."""
    return _Object(path) if is_object(path) else _File(path)


class _File(MetricsFile):
    """A local file. Each line is written without buffering."""

    def __init__(self, path: Path):
        records.repair(path)
        self._path = path
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed by close()

    def append(self, line: str) -> None:
        """Removes a line that a full disk has truncated, so that it can be written again."""
        self.keep()
        before = os.fstat(self._file.fileno()).st_size
        content = line.encode() + b"\n"
        try:
            written = self._file.write(content)
            if written != len(content):
                raise OSError(errno.ENOSPC, f"{self._path}: {os.strerror(errno.ENOSPC)}")
        except OSError:
            self._file.truncate(before)
            raise

    def keep(self) -> None:
        if self._path.exists() and os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno())):
            return
        self._file.seek(0)
        content = self._file.read()
        self._file.close()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._path, "a+b", buffering=0)  # noqa: SIM115 - closed by close()
        self._file.write(content)

    def close(self) -> None:
        self._file.close()


class _Object(MetricsFile):
    """An object of an object store. All lines are in memory and are uploaded as a whole: periodically by a thread, so
    that training does not wait, and by `keep` and `close`. The thread tries a failed upload again later."""

    def __init__(self, path: Path):
        self._path = path
        content = path.read_bytes() if path.exists() else None
        self._lines = [content or b""]
        self._uploaded = 1 if content is not None else 0
        self._uploading = threading.Lock()
        self._upload()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics.jsonl", daemon=True)
        self._thread.start()

    def append(self, line: str) -> None:
        self._lines.append(line.encode() + b"\n")

    def keep(self) -> None:
        if not self._path.exists():
            self._uploaded = 0
        self._upload()

    def close(self) -> None:
        self._done.set()
        self._thread.join()
        self.keep()

    def _run(self) -> None:
        while not self._done.wait(UPLOAD_SECONDS):
            with contextlib.suppress(Exception):
                self._upload()

    def _upload(self) -> None:
        with self._uploading:  # older content must not overwrite newer content
            count = len(self._lines)
            if count != self._uploaded:
                self._path.write_bytes(b"".join(self._lines[:count]))
                self._uploaded = count

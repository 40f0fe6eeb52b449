"""The lock of a run directory, so that only one process writes to it.

The lock is a file that names its holder. If the file system supports `flock`, the kernel decides: it frees the lock of
a process that has ended for any reason. On a shared file system `flock` may be local to one machine or missing.
Therefore the holder also touches the file every few seconds. A process on another machine takes the lock only after the
file has not been touched for a minute by the clock of the file system.
"""

import contextlib
import dataclasses
import enum
import fcntl
import json
import os
import platform
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from llm_jax.core.checks import check

BEAT_SECONDS = 10.0
"""Interval at which the holder touches the file."""
STALE_SECONDS = 60.0
"""Age of the last touch above which a holder on another machine counts as ended."""
PATIENCE_SECONDS = 600.0
"""How long a job that its scheduler has restarted waits for its predecessor."""
_LOOK_SECONDS = 1.0


class RunHeld(ValueError):
    """Raised if another process holds the lock of the run directory."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that holds, or held, the lock."""

    host: str
    kernel: str
    """Boot id and PID namespace in which `pid` is valid."""
    pid: int
    began: str
    """Start time of the process as the kernel counts it. Distinguishes it from a later process with the same pid."""
    time: float
    """When it took the lock, in seconds since 1970."""
    job: str
    """Its SLURM job; empty outside SLURM."""
    command: str

    @classmethod
    def this_process(cls) -> Self:
        """The entry for this process."""
        job = os.environ.get("SLURM_JOB_ID", "")
        return cls(platform.node(), _kernel(), os.getpid(), _began(os.getpid()), time.time(), job, shlex.join(sys.argv))

    @classmethod
    def parsed(cls, text: str) -> Self | None:
        """The holder in the text of a lock file; None if it is damaged."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def __str__(self) -> str:
        job = f", SLURM job {self.job}" if self.job else ""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.time))
        return f"process {self.pid} on {self.host}{job}, since {since} ({self.command})"

    @property
    def is_of_this_kernel(self) -> bool:
        """Whether that process ran under the kernel of this process, so that `flock` alone decides."""
        return self.kernel.split()[:1] == _kernel().split()[:1]

    def has_ended(self) -> bool | None:
        """Whether the process has ended; None if its pid is not valid here."""
        if self.kernel != _kernel():
            return None
        return _began(self.pid) in ("", "zombie") or _began(self.pid) != self.began


class _State(enum.Enum):
    FREE = "free"
    HELD = "held"
    UNKNOWN = "of a process on another machine that gave a sign of life within the last minute"


class RunLock:
    """The lock for this process. Use `take` and `release`, or `RunDirectory.locked`."""

    def __init__(self, path: Path):
        self._path = path
        self._file: int | None = None
        self._done = threading.Event()
        self._beating: threading.Thread | None = None

    def take(self, say: Callable[[str], None]) -> None:
        """Takes the lock, also from a holder that has ended. A job that SLURM has requeued waits for its predecessor.

        Args:
          say: shows a line to the user.

        Raises:
          RunHeld: if another process holds the lock. The message names that process.
          OSError: if the file cannot be written.
        """
        watch, said, touched = time.monotonic(), False, None
        while not self._create():
            state, holder, last = self._look()
            if state is _State.FREE:
                continue
            touched = touched or last
            alive = state is _State.HELD or last > touched
            waited = time.monotonic() - watch
            again = is_requeued(holder)
            if alive and (not again or waited > PATIENCE_SECONDS):
                raise RunHeld(refusal(self._path, holder))
            if not said:
                say(f"{self._path.parent} was last in use by {holder or 'an unknown process'}; waiting for its end")
                said = True
            time.sleep(_LOOK_SECONDS)
        self._done.clear()
        self._beating = threading.Thread(target=self._beat, name="run lock", daemon=True)
        self._beating.start()

    def release(self) -> None:
        """Releases the lock and deletes its file. Does nothing if this process does not hold the lock."""
        if self._file is None:
            return
        self._done.set()
        if self._beating is not None:
            self._beating.join()
        if self._is_ours():
            self._path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = None

    def check(self) -> None:
        """Checks that this process still holds the lock. Creates its file again if it was deleted.

        Raises:
          RunHeld: if another process has taken the lock. It may do so after this process has not touched the file for
            a minute, for example on a suspended machine.
        """
        if self._file is None or self._is_ours():
            return
        if self._path.exists():
            raise RunHeld(lost(self._path, Holder.parsed(_read(self._path))))
        former, self._file = self._file, None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        check(
            self._create(),
            f"{self._path.parent} was deleted and is in use by another process: this process stops; give its run "
            "another --name",
        )
        os.close(former)

    def _create(self) -> bool:
        """Creates the file atomically, locked and with its content. Returns False if it already exists."""
        file, name = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name, suffix=".partial")
        try:
            os.write(file, json.dumps(dataclasses.asdict(Holder.this_process())).encode())
            _flock(file)
            _place(name, self._path)
        except FileExistsError:
            os.close(file)
            return False
        except BaseException:
            os.close(file)
            raise
        finally:
            Path(name).unlink(missing_ok=True)
        self._file = file
        return True

    def _look(self) -> tuple[_State, Holder | None, float]:
        """State, holder and time of the last touch of the file. Removes a file whose holder has ended."""
        try:
            file = os.open(self._path, os.O_RDWR)
        except FileNotFoundError:
            return _State.FREE, None, 0.0
        try:
            flocked = _flock(file, attempts=3)
            found = os.fstat(file)
            holder = Holder.parsed(os.pread(file, 1 << 16, 0).decode(errors="replace"))
            if flocked is False:
                return _State.HELD, holder, found.st_mtime
            ended = holder.has_ended() if holder else None
            if ended is False and flocked is None:
                return _State.HELD, holder, found.st_mtime
            freed = flocked and holder is not None and holder.is_of_this_kernel
            if ended or freed or self._now() - found.st_mtime > STALE_SECONDS:
                self._remove(found.st_ino)
                return _State.FREE, holder, found.st_mtime
            return _State.UNKNOWN, holder, found.st_mtime
        finally:
            os.close(file)

    def _remove(self, inode: int) -> None:
        """Removes the file if it still has this inode. Of several processes only one succeeds in renaming it."""
        mine = self._path.with_name(f"{self._path.name}.{os.getpid()}.stale")
        try:
            os.rename(self._path, mine)
        except FileNotFoundError:
            return
        if os.stat(mine).st_ino != inode:  # another process has taken the lock since
            with contextlib.suppress(FileExistsError):
                os.link(mine, self._path)
        os.unlink(mine)

    def _now(self) -> float:
        """The current time by the clock of the file system, which also sets the times of touches."""
        with tempfile.NamedTemporaryFile(dir=self._path.parent, prefix=self._path.name, suffix=".partial") as probe:
            return os.fstat(probe.fileno()).st_mtime

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # a file server may be unavailable; `check` detects a lost lock
                if self._is_ours():
                    os.utime(self._path)

    def _is_ours(self) -> bool:
        try:
            return self._file is not None and os.path.samestat(os.stat(self._path), os.fstat(self._file))
        except OSError:
            return False


def refusal(path: Path, holder: Holder | None) -> str:
    """Message for a process that finds the lock at `path` held."""
    ended = holder is not None and holder.has_ended()
    child = "; the process itself has ended, and a child of it still has the lock" if ended else ""
    return (
        f"{path.parent} is in use by {holder or 'a process that its lock does not name'}{child}: two processes would "
        "destroy each other's records and checkpoints. Wait for it or stop it, or give this run another --name; if no "
        f"such process exists, delete {path}"
    )


def lost(path: Path, holder: Holder | None) -> str:
    """Message for a process that has lost the lock at `path` to another."""
    return (
        f"this process lost {path.parent} to {holder or 'an unknown process'} while it gave no sign of life; it stops "
        "here, and writes nothing more"
    )


def _place(name: str, path: Path) -> None:
    """Moves a complete file to `path`, unless `path` exists.

    Raises:
      FileExistsError: if `path` exists.
    """
    try:
        os.link(name, path)
    except FileExistsError:
        raise
    except OSError:  # no hard links: here two processes may both succeed between these lines
        if path.exists():
            raise FileExistsError(path) from None
        os.rename(name, path)


def _flock(file: int, attempts: int = 1) -> bool | None:
    """Whether the kernel granted the lock of the file; None if the file system does not support it."""
    for attempt in range(attempts):  # another process may hold it for a moment in `_look`
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05 if attempt + 1 < attempts else 0)
        except OSError:
            return None
    return False


def is_requeued(holder: Holder | None, environment: Mapping[str, Any] = os.environ) -> bool:
    """Whether the scheduler has restarted this job and the holder is its predecessor."""
    again = environment.get("SLURM_RESTART_COUNT", "0") != "0"
    return again and holder is not None and holder.job == environment.get("SLURM_JOB_ID", "")


def _kernel() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return platform.node()


def _began(pid: int) -> str:
    """Start time of a process as the kernel counts it; 'zombie' if it has ended, '' if it does not exist."""
    if not Path("/proc/self/stat").exists():  # not Linux
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            return "some time"
        return ""
    try:
        state, *facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "zombie" if state in "ZX" else facts[18]


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

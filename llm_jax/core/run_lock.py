"""The lock of a run directory: of several processes only one may write to it.

The lock is a file that names its holder. Where the file system knows `flock`, the kernel decides: it frees the lock of
a process that has ended, however it ended. A shared file system may keep `flock` to one machine or lack it. Therefore
the holder also touches the file every few seconds, and a process on another machine takes the lock only once the file
has not been touched for a minute by the clock of the file system.
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
"""Time between two touches of the file by its holder."""
STALE_SECONDS = 60.0
"""Age of the last touch from which on a holder on another machine counts as ended."""
PATIENCE_SECONDS = 600.0
"""How long a job that its scheduler has started again waits for its predecessor."""
_LOOK_SECONDS = 1.0


class RunHeld(ValueError):
    """Another process has the run directory."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that has, or had, the lock."""

    host: str
    kernel: str
    """Boot and process namespace within which `pid` means something."""
    pid: int
    began: str
    """When the process began, as the kernel counts; it tells the process from a later one of the same pid."""
    time: float
    """When it took the lock, in seconds since 1970."""
    job: str
    """Its SLURM job; empty outside SLURM."""
    command: str

    @classmethod
    def this_process(cls) -> Self:
        """What this process writes into the file."""
        job = os.environ.get("SLURM_JOB_ID", "")
        return cls(platform.node(), _kernel(), os.getpid(), _began(os.getpid()), time.time(), job, shlex.join(sys.argv))

    @classmethod
    def parsed(cls, text: str) -> Self | None:
        """The holder that a file names; None for a file that is damaged."""
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
        """Whether the kernel that runs this process ran that one too, so that `flock` tells all."""
        return self.kernel.split()[:1] == _kernel().split()[:1]

    def has_ended(self) -> bool | None:
        """Whether the process has ended; None if its pid means nothing here."""
        if self.kernel != _kernel():
            return None
        return _began(self.pid) in ("", "zombie") or _began(self.pid) != self.began


class _State(enum.Enum):
    FREE = "free"
    HELD = "held"
    UNKNOWN = "of a process on another machine that gave a sign of life within the last minute"


class RunLock:
    """The lock as this process sees it. Use `take` and `release`, or see `RunDirectory.locked`."""

    def __init__(self, path: Path):
        self._path = path
        self._file: int | None = None
        self._done = threading.Event()
        self._beating: threading.Thread | None = None

    def take(self, say: Callable[[str], None]) -> None:
        """Takes the lock. A lock whose holder has ended is taken over. A job that SLURM has queued again waits for its
        predecessor.

        Args:
          say: shows a line to the user.

        Raises:
          RunHeld: if another process has it; the message names that process.
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
        """Gives the lock back; its file goes. Does nothing without the lock."""
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
        """Makes sure that this process still has the lock. Where its file was deleted, it is made again.

        Raises:
          RunHeld: if another process has taken the lock over, as it may once this one has given no sign of life for
            a minute (a suspended machine).
        """
        if self._file is None or self._is_ours():
            return
        if self._path.exists():
            raise RunHeld(lost(self._path, Holder.parsed(_read(self._path))))
        former, self._file = self._file, None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        check(self._create(), f"{self._path.parent} was deleted and is in use by another process now; this one stops")
        os.close(former)

    def _create(self) -> bool:
        """Makes the file, locked and complete from its first moment; False if there is one."""
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
        """State, holder and time of the last touch of the file; a file whose holder has ended is removed."""
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
        """Removes the file if it is still the one that was judged. Of several processes that do so one moves it."""
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
        """The time by the clock that also dates the file's touches."""
        with tempfile.NamedTemporaryFile(dir=self._path.parent, prefix=self._path.name, suffix=".partial") as probe:
            return os.fstat(probe.fileno()).st_mtime

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # a file server may not answer for a while; `check` sees what came of it
                if self._is_ours():
                    os.utime(self._path)

    def _is_ours(self) -> bool:
        try:
            return self._file is not None and os.path.samestat(os.stat(self._path), os.fstat(self._file))
        except OSError:
            return False


def refusal(path: Path, holder: Holder | None) -> str:
    """What a process is told that meets the lock at `path`."""
    ended = holder is not None and holder.has_ended()
    child = "; the process itself has ended, and a child of it still has the lock" if ended else ""
    return (
        f"{path.parent} is in use by {holder or 'a process that its lock does not name'}{child}: two processes would "
        "destroy each other's records and checkpoints. Wait for it or stop it, or give this run another --name; if no "
        f"such process exists, delete {path}"
    )


def lost(path: Path, holder: Holder | None) -> str:
    """What a process is told that had the lock at `path`, which is another's now."""
    return (
        f"this process lost {path.parent} to {holder or 'an unknown process'} while it gave no sign of life; it stops "
        "here, and writes nothing more"
    )


def _place(name: str, path: Path) -> None:
    """Gives a complete file its name, unless there is one of that name.

    Raises:
      FileExistsError: if there is.
    """
    try:
        os.link(name, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links, where two may pass between these lines
        if path.exists():
            raise FileExistsError(path) from None
        os.rename(name, path)


def _flock(file: int, attempts: int = 1) -> bool | None:
    """Whether the kernel gave its lock of the file; None where the file system has none."""
    for attempt in range(attempts):  # another process may hold it for the moment in which it looks
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05 if attempt + 1 < attempts else 0)
        except OSError:
            return None
    return False


def is_requeued(holder: Holder | None, environment: Mapping[str, Any] = os.environ) -> bool:
    """Whether the scheduler has started this job again, so that the holder is its predecessor."""
    again = environment.get("SLURM_RESTART_COUNT", "0") != "0"
    return again and holder is not None and holder.job == environment.get("SLURM_JOB_ID", "")


def _kernel() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return platform.node()


def _began(pid: int) -> str:
    """The kernel's count at the beginning of a process; 'zombie' after its end, '' if there is none."""
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

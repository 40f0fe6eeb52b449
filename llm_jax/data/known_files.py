"""What was found by reading whole files, kept until they change, so that a start does not read a corpus again.

A file is unchanged while its path, size, mtime, ctime and inode are. The answers are kept once for a machine and a
user, in `~/.cache/llm_jax`, or in the folder that the environment variable LLM_JAX_KNOWN_FILES names. They are
redundant: where the folder cannot be used, every answer is found anew. `distrusted()` reads the files whatever is kept.
"""

import contextlib
import dataclasses
import json
import os
import socket
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "LLM_JAX_KNOWN_FILES"

_TABLE = (
    "create table if not exists answers "
    "(question text primary key, identity text, answer text, checksum integer) without rowid"
)
_MOST_THREADS = 4
_WAIT_FOR_OTHERS = 10.0
_PER_TRANSACTION = 256
_BLOCK = 2**20

_found_anew: set[str] | None = None
"""Keys of the answers found within a `distrusted` block, which alone count there."""


@contextlib.contextmanager
def distrusted() -> Iterator[None]:
    """Within the block every answer is found once by reading the files, and replaces the one that is kept."""
    global _found_anew
    before, _found_anew = _found_anew, set()
    try:
        yield
    finally:
        _found_anew = before


@dataclasses.dataclass(frozen=True)
class Question:
    """Something that depends on nothing but `text` and the content of the files at `paths`."""

    text: str
    paths: tuple[Path, ...]

    @property
    def key(self) -> str:
        """As the database can hold it, whatever bytes the paths have."""
        words = (self.text, *(str(path.absolute()) for path in self.paths))
        return "\0".join(words).encode("utf-8", "backslashreplace").decode()


def answers(questions: Sequence[Question], answer: Callable[[Question], Any]) -> list[Any]:
    """`answer(question)`, a JSON value, for each of `questions`; those that are not known are found in several threads.

    Raises:
      ValueError: if a file cannot be read.
    """
    states = {question: _FileState.of_all(question.paths) for question in questions}
    identities = {question.key: state.identity for question, state in states.items()}
    found = _known(identities)
    missing = [question for question in states if question.key not in found]
    with ThreadPoolExecutor(_threads()) as threads:
        for start in range(0, len(missing), _PER_TRANSACTION):
            group = missing[start : start + _PER_TRANSACTION]
            new = dict(zip(group, threads.map(answer, group), strict=True))
            remember({question: new[question] for question in group}, states)
            found |= {question.key: value for question, value in new.items()}
    return [found[question.key] for question in questions]


def remember(found: Mapping[Question, Any], states: Mapping[Question, "_FileState"] | None = None) -> None:
    """Keeps answers, found while the files were in `states` or, without, as they are now."""
    kept = {}
    for question, answer in found.items():
        state = _FileState.of_all(question.paths)
        # A file that has just been written can be written again without a change of its times.
        if state.is_settled and (states is None or states[question] == state):
            kept[question.key] = (state.identity, answer)
    _keep(kept)


def checksum(path: Path) -> int:
    """CRC-32 of a file's bytes.

    It finds damage, not forgery; zlib computes it at the speed of a disk, and holds no lock of Python's meanwhile.
    """
    value = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


@dataclasses.dataclass(frozen=True)
class _FileState:
    """When files count as unchanged."""

    identity: str
    """Sizes, mtimes, ctimes and inodes."""
    changed_ns: int
    """The newest of their times."""
    coarse: bool
    """Whether the file system seems to keep times in whole seconds."""
    seen_ns: int = dataclasses.field(compare=False)

    @classmethod
    def of_all(cls, paths: Sequence[Path]) -> "_FileState":
        try:
            found = [path.stat() for path in paths]
        except OSError as error:
            reason = error.strerror or error
            raise ValueError(f"cannot read {error.filename}: {reason}; give the path of a readable file") from error
        times = [time for stat in found for time in (stat.st_mtime_ns, stat.st_ctime_ns)]
        identity = " ".join(f"{s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}" for s in found)
        return cls(identity, max(times, default=0), all(ns % 10**9 == 0 for ns in times), time.time_ns())

    @property
    def is_settled(self) -> bool:
        """Whether a later change will show in the files' times."""
        return self.seen_ns - self.changed_ns > (2 * 10**9 if self.coarse else 5 * 10**7)


def _threads() -> int:
    return min(_MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _known(identities: Mapping[str, str]) -> dict[str, Any]:
    """The answers that are kept and still hold, by key."""
    known: dict[str, Any] = {}

    def read(database: sqlite3.Connection) -> None:
        for key, identity in identities.items():
            if _found_anew is not None and key not in _found_anew:
                continue
            row = database.execute(
                "select answer, checksum from answers where question = ? and identity = ?", (key, identity)
            ).fetchone()
            if row and row[1] == _row_checksum(key, identity, row[0]):
                known[key] = json.loads(row[0])

    _with_database(read)
    return known


def _keep(found: Mapping[str, tuple[str, Any]]) -> None:
    """Stores (identity, answer) by key."""
    rows = []
    for key, (identity, answer) in found.items():
        fields = (key, identity, json.dumps(answer))
        rows.append((*fields, _row_checksum(*fields)))
    if _found_anew is not None:
        _found_anew.update(found)
    _with_database(lambda database: database.executemany("insert or replace into answers values (?, ?, ?, ?)", rows))


def _row_checksum(*fields: str) -> int:
    return zlib.crc32("\0".join(fields).encode())


def _with_database(act: Callable[[sqlite3.Connection], Any]) -> None:
    """One transaction, or nothing where no database can be used. A damaged one is removed."""
    try:
        folder = Path(os.environ.get(FOLDER_VARIABLE) or Path.home() / ".cache" / "llm_jax")
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return
    # Homes are often shared by hosts, whose inodes and disks are their own.
    path = folder / f"known-files-{socket.gethostname()}.sqlite"
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=_WAIT_FOR_OTHERS)) as database, database:
            # Only a crash of the machine can damage the file then; its rows have checksums.
            database.execute("pragma synchronous = off")
            database.execute(_TABLE)
            act(database)
    except sqlite3.OperationalError:
        # Locked, full or not to be written.
        return
    except sqlite3.DatabaseError:
        path.unlink(missing_ok=True)

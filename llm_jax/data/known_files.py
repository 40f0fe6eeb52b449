"""A cache of results computed from whole files, valid until the files change, so that a start does not reread a corpus.

A file counts as unchanged while its path, size, mtime, ctime and inode are unchanged. The cache is per machine and
user. It lies in `~/.cache/llm_jax`, or in the folder that the environment variable LLM_JAX_KNOWN_FILES names. If that
folder cannot be used, every answer is computed again. Within `distrusted()` the files are read in any case.
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
"""Keys of the answers computed within the current `distrusted` block. Only these are valid there."""


@contextlib.contextmanager
def distrusted() -> Iterator[None]:
    """Within the block every answer is computed once by reading the files, and replaces the stored one."""
    global _found_anew
    before, _found_anew = _found_anew, set()
    try:
        yield
    finally:
        _found_anew = before


@dataclasses.dataclass(frozen=True)
class Question:
    """A question whose answer depends only on `text` and the content of the files at `paths`."""

    text: str
    paths: tuple[Path, ...]

    @property
    def key(self) -> str:
        """Key in the database. It is valid text whatever bytes the paths have."""
        words = (self.text, *(str(path.absolute()) for path in self.paths))
        return "\0".join(words).encode("utf-8", "backslashreplace").decode()


def answers(questions: Sequence[Question], answer: Callable[[Question], Any]) -> list[Any]:
    """`answer(question)`, a JSON value, for each of `questions`. Unknown answers are computed in several threads.

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
    """Stores answers. `states` are the states of the files before the answers were computed; None: their state now."""
    kept = {}
    for question, answer in found.items():
        state = _FileState.of_all(question.paths)
        # A file written just now can be written again without a change of its timestamps.
        if state.is_settled and (states is None or states[question] == state):
            kept[question.key] = (state.identity, answer)
    _keep(kept)


def checksum(path: Path) -> int:
    """CRC-32 of a file's bytes.

    It detects damage, not forgery. zlib computes it at the speed of a disk and releases the GIL.
    """
    value = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


@dataclasses.dataclass(frozen=True)
class _FileState:
    """State of files, compared to decide whether they are unchanged."""

    identity: str
    """Sizes, mtimes, ctimes and inodes."""
    changed_ns: int
    """The newest of their times."""
    coarse: bool
    """Whether all times are whole seconds, which suggests a file system with that resolution."""
    seen_ns: int = dataclasses.field(compare=False)

    @classmethod
    def of_all(cls, paths: Sequence[Path]) -> "_FileState":
        try:
            found = [path.stat() for path in paths]
        except OSError as error:
            reason = error.strerror or error
            raise ValueError(f"cannot read {error.filename}: {reason}; set the path to a readable file") from error
        times = [time for stat in found for time in (stat.st_mtime_ns, stat.st_ctime_ns)]
        identity = " ".join(f"{s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}" for s in found)
        return cls(identity, max(times, default=0), all(ns % 10**9 == 0 for ns in times), time.time_ns())

    @property
    def is_settled(self) -> bool:
        """Whether the times are old enough that any later change alters them."""
        return self.seen_ns - self.changed_ns > (2 * 10**9 if self.coarse else 5 * 10**7)


def _threads() -> int:
    return min(_MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _known(identities: Mapping[str, str]) -> dict[str, Any]:
    """The stored answers that are still valid, by key."""
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
    """Runs `act` in one transaction, or does nothing if no database can be used. Removes a damaged database."""
    try:
        folder = Path(os.environ.get(FOLDER_VARIABLE) or Path.home() / ".cache" / "llm_jax")
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return
    # Home folders are often shared by machines, each of which has its own disks and inodes.
    path = folder / f"known-files-{socket.gethostname()}.sqlite"
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=_WAIT_FOR_OTHERS)) as database, database:
            # With this setting only a crash of the machine can damage the file, and every row has a checksum.
            database.execute("pragma synchronous = off")
            database.execute(_TABLE)
            act(database)
    except sqlite3.OperationalError:
        # The database is locked, the disk is full or the file is read-only.
        return
    except sqlite3.DatabaseError:
        path.unlink(missing_ok=True)

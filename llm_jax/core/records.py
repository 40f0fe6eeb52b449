"""metrics.jsonl: one JSON object per line, with `kind`, `step` and numbers.

A damaged line is skipped and reported. It does not affect other records.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_jax.core.files import unused, write_atomically

Record = dict[str, Any]


def read(path: Path) -> tuple[list[Record], list[str]]:
    """The records of a file in the order of steps, and a message for each line that is not a record.

    A resumed run repeats the steps since its last save. Of records with equal (kind, step) the last one is returned.
    """
    latest: dict[tuple[str, int], Record] = {}
    damage = []
    for number, line in enumerate(_lines(path), 1):
        try:
            record = parsed(line)
        except ValueError as error:
            damage.append(f"{path}, line {number}, is not a record ({error}); it is passed over")
        else:
            latest[record["kind"], record["step"]] = record
    return sorted(latest.values(), key=lambda record: record["step"]), damage


def parsed(line: bytes) -> Record:
    """The record that a line holds.

    Raises:
      ValueError: if it is not a record.
    """
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {str(error)[:80]}") from error
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__}, not an object")
    if not isinstance(record.get("kind"), str):
        raise ValueError("it has no 'kind'")
    if type(record.get("step")) is not int or record["step"] < 0:
        raise ValueError("its 'step' is not a whole number of steps")
    too_large = [name for name, value in record.items() if type(value) is int and abs(value) > 2**63]
    if too_large or not _is_time(record.get("time", 0.0)):
        raise ValueError(f"{too_large or ['time']} is not a number that a run records")
    return record


def repair(path: Path) -> None:
    """Removes a truncated last line, left by a crash or a full disk, so that the next record begins on its own line."""
    if not path.exists():
        return
    with open(path, "r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole == len(content):
            return
        try:
            parsed(content[whole:])
        except ValueError:
            file.truncate(whole)
        else:
            file.write(b"\n")
        os.fsync(file.fileno())


def split(path: Path, step: int) -> Path | None:
    """Moves the records after `step` to another file in the same folder, and returns its path; None if there are no
    such records. Lines that are not records stay."""
    kept, moved = [], []
    for line in _lines(path):
        (moved if _step(line) > step else kept).append(line + b"\n")
    if not moved:
        return None
    later = unused(path.with_name(f"{path.stem}.later-than-{step}{path.suffix}"))
    write_atomically(later, b"".join(moved))
    write_atomically(path, b"".join(kept))
    return later


def _lines(path: Path) -> Iterator[bytes]:
    if path.exists():
        yield from filter(bytes.strip, path.read_bytes().split(b"\n"))


def _step(line: bytes) -> float:
    try:
        return parsed(line)["step"]
    except ValueError:
        return -math.inf


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)

"""Reads files that may be damaged, and writes files atomically, so that a crash leaves no partial file. A file may be
an object of an object store (see `paths`)."""

import itertools
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from llm_jax.core.checks import check, shortened
from llm_jax.core.paths import is_object


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file atomically: readers see the old content or the new content. Several processes may write the same
    file. Text is written as UTF-8."""
    data = content.encode() if isinstance(content, str) else content
    if is_object(path):
        path.write_bytes(data)
        return
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".partial", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def read_json_object(path: Path, remedy: str) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
      ValueError: if the file cannot be read or does not hold a JSON object. The message ends with `remedy`.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    # json raises ValueError for an integer with thousands of digits, and RecursionError for deep nesting.
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): {remedy}") from error
    check(isinstance(found, dict), f"{path} holds {shortened(found)}: it must be a JSON object; {remedy}")
    return found


def remove(path: Path) -> None:
    """Deletes a file, or a folder with its content. For a symbolic link, deletes only the link."""
    if not path.is_dir() or path.is_symlink():
        path.unlink()
    elif is_object(path):
        for found in path.rglob("*"):
            found.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def copy_folder(source: Path, target: Path) -> None:
    """Copies all files of a local folder, at any depth, into another folder."""
    for file in (file for file in source.rglob("*") if file.is_file()):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(copy, file.read_bytes())


def unused(path: Path) -> Path:
    """`path`, or the first of `path`-2, `path`-3, ... that does not exist."""
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return next(other for other in itertools.chain([path], numbered) if not other.exists())

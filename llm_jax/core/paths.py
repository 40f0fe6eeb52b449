"""Paths of run directories: in a file system, which may be mounted, or in an object store at gs://.

A path of a file system is a `pathlib.Path`. A path at gs:// has those of its methods that run directories use. In an
object store, folders exist only in the names of objects. It renames by copying, cannot append, and has no locks.
Writing an object is atomic.
"""

import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, cast

import fsspec
import fsspec.config
from etils.epath.gpath import PosixGPath

from llm_jax.core.checks import check

_SCHEME = "gs"


class ObjectPath(PosixGPath):
    """A path at gs://."""

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a folder exists with its first object."""

    def absolute(self) -> Self:
        return self

    def resolve(self, strict: bool = False) -> Self:
        return self

    def is_symlink(self) -> bool:
        return False

    def rglob(self, pattern: str) -> Iterator[Self]:
        """Objects below this folder, at any depth, whose name matches `pattern`."""
        for found in _store().find(os.fspath(self)):
            if fnmatch.fnmatchcase(found.rpartition("/")[2], pattern):
                yield type(self)(f"{_SCHEME}://{found}")


def at(where: str | os.PathLike[str]) -> Path:
    """The path for a text: an `ObjectPath` if it begins with gs://, otherwise a `pathlib.Path`.

    Raises:
      ValueError: for another scheme, for a text without a bucket, or if gcsfs is not installed.
    """
    if is_object(where):
        return cast(Path, where)
    text = os.fspath(where)
    scheme, separator, rest = text.partition("://")
    if not separator:
        lost = text.startswith(f"{_SCHEME}:/")
        check(
            not lost,
            f"{text} has one slash after gs:, since pathlib.Path removes the second: pass the address as a str",
        )
        return Path(text)
    check(
        scheme == _SCHEME,
        f"{text} has the scheme {scheme}: only file systems and gs:// are supported; use such a path, or mount the "
        "store",
    )
    check(rest.strip("/") != "", f"{text} has no bucket: write gs://BUCKET/FOLDER")
    try:
        fsspec.get_filesystem_class("gcs")
    except ImportError as error:
        raise ValueError(f"{text}: gcsfs cannot be imported ({error}): pip install 'llm-jax[gcs]'") from error
    # Without the listings cache, files of other processes are seen at once, also by epath's own file systems.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return cast(Path, ObjectPath(text))


def is_object(path: Any) -> bool:
    """Whether a path is in an object store."""
    return isinstance(path, ObjectPath)


def create(path: Path, content: bytes) -> bool:
    """Writes an object unless it exists. Returns whether it was written. Of concurrent calls exactly one succeeds."""
    try:
        _store().pipe_file(os.fspath(path), content, mode="create")
    except FileExistsError:
        return False
    return True


def _store() -> fsspec.AbstractFileSystem:
    return fsspec.filesystem("gcs")

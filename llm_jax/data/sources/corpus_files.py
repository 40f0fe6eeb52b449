"""Finds and opens the files of a corpus."""

import bz2
import contextlib
import glob
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow

from llm_jax.core.checks import check

_DECOMPRESSED: dict[str, Callable[[BinaryIO], io.BufferedIOBase]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    # pyarrow reads consecutive frames and raises for a truncated one. `zstandard` raises no error for it.
    ".zst": lambda file: io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd")),
}


def find(paths: tuple[str, ...]) -> list[tuple[str, Path]]:
    """(name, path) of the files that match `paths`, sorted within each entry.

    An entry is a file, a folder (every file below it whose path has no hidden part) or a glob (`**` descends). The
    name is the path below the folder, or below the part of the glob before its first wildcard.

    Raises:
      ValueError: for an entry that matches no file.
    """
    return [file for entry in paths for file in _find_one(entry)]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file. Files named `*.gz`, `*.bz2`, `*.xz` or `*.zst` are decompressed.

    Raises:
      ValueError: if it cannot be opened or read, or is damaged.
    """
    try:
        with open(path, "rb") as file:
            if path.suffix in _DECOMPRESSED:
                with _DECOMPRESSED[path.suffix](file) as decompressed:
                    yield decompressed
            else:
                yield file
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read {path}: {reason}; set the path to a readable file") from error


def check_paths(paths: tuple[str, ...]) -> None:
    """Checks that the `paths` field of a reader is a tuple of at least one path."""
    check(
        isinstance(paths, tuple) and len(paths) > 0 and all(isinstance(path, str) and path for path in paths),
        f"paths is {paths!r}: it must be a tuple of at least one path, folder or glob",
    )


def _find_one(entry: str) -> list[tuple[str, Path]]:
    path = Path(entry).expanduser()
    if path.is_dir():
        files = [(file.relative_to(path).as_posix(), file) for file in _files_below(path)]
        check(bool(files), f"folder {entry!r} (in {Path.cwd()}) has no files: set the path to a folder with files")
        return sorted(files)
    if not glob.has_magic(entry) or path.exists():
        check(
            path.exists() or path.is_symlink(),
            f"no file {entry!r} (working directory {Path.cwd()}): set the path to an existing file",
        )
        return [(path.name, path)]
    root = _fixed_root(path)
    matches = map(Path, glob.glob(str(path), recursive=True))
    files = sorted((match.relative_to(root).as_posix(), match) for match in matches if _is_file(match))
    check(bool(files), f"glob {entry!r} matches no file (working directory {Path.cwd()}): correct the pattern")
    return files


def _files_below(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and _is_file(path):
            yield path


def _is_file(path: Path) -> bool:
    """Whether `path` is a file or a broken link. Reading a broken link raises an error; it is not skipped silently."""
    return path.is_file() or (path.is_symlink() and not path.is_dir())


def _fixed_root(pattern: Path) -> Path:
    parts = []
    for part in pattern.parts:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts)

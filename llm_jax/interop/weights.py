"""Folders of safetensors files: reading by tensor, and writing in shards with an index."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from llm_jax.core.checks import check, shortened
from llm_jax.core.files import read_json_object, write_atomically

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_REAL = ("F64", "F32", "F16", "BF16")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


class WeightFolder(contextlib.ExitStack):
    """The tensors of a folder, by name; a context manager that keeps its files open.

    An index decides which file a tensor is read from. Tensors that it does not list are ignored.
    """

    def __init__(self, folder: Path):
        """
        Raises:
          ValueError: for a folder without safetensors; a shard that is missing, damaged or outside the folder; an index
            that is malformed, or lists a tensor that its shard lacks; a tensor in two files without an index.
        """
        super().__init__()
        index = _read_index(folder)
        with contextlib.ExitStack() as opened:
            shards = {path: opened.enter_context(_opened(path)) for path in _paths(folder, index)}
            stored = {path: set(shard.keys()) for path, shard in shards.items()}
            files = _files_of(stored) if index is None else _indexed(folder, index, stored)
            self.push(opened.pop_all())
        self._files = {name: shards[path] for name, path in files.items()}

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header of its file."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """One tensor, in its stored dtype. ValueError for a dtype that is not floating point."""
        kind = self._files[name].get_slice(name).get_dtype()
        check(
            kind in _REAL,
            f"tensor {name} has type {kind}: only {', '.join(_REAL)} are supported; use unquantized weights",
        )
        return self._files[name].get_tensor(name)


def write_folder(folder: Path, sizes: dict[str, int], tensor: Callable[[str], np.ndarray], shard_bytes: int) -> None:
    """Writes tensors into files of up to `shard_bytes` each, with an index if there are several.

    Args:
      sizes: bytes of each tensor, in the order of writing.
      tensor: function from a name to the tensor; called once per name, when its file is written.

    Raises:
      ValueError: if the folder is not empty, or is a file.
    """
    check(folder.is_dir() or not folder.exists(), f"{folder} is a file: choose an empty folder")
    there = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    more = f" and {len(there) - 4} more" if len(there) > 4 else ""
    check(not there, f"{folder} already holds {', '.join(there[:4])}{more}: choose an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(sizes, shard_bytes))
    names = [_SINGLE] if len(shards) == 1 else [_shard_name(number, len(shards)) for number in range(len(shards))]
    for file, shard in zip(names, shards, strict=True):
        # transformers reads `format` only to learn that the tensors have PyTorch's layout.
        part = folder / f"{file}.part"
        try:
            save_file({name: np.ascontiguousarray(tensor(name)) for name in shard}, part, {"format": "pt"})
            part.rename(folder / file)
        except BaseException:
            for written in (part, *(folder / name for name in names)):
                written.unlink(missing_ok=True)
            raise
    if len(shards) > 1:
        files = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": files}
        write_atomically(folder / _INDEX, json.dumps(index, indent=2) + "\n")


def _shards(sizes: dict[str, int], limit: int) -> Iterator[list[str]]:
    """Names of the tensors of each file: up to `limit` bytes, or one larger tensor."""
    shard, filled = [], 0
    for name, size in sizes.items():
        if shard and filled + size > limit:
            yield shard
            shard, filled = [], 0
        shard.append(name)
        filled += size
    yield shard


def _shard_name(number: int, count: int) -> str:
    return f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): download it again") from error


def _read_index(folder: Path) -> dict[str, str] | None:
    """{tensor: file} of the folder's index; None without an index."""
    path = folder / _INDEX
    if not path.exists():
        return None
    files = read_json_object(path, "download it again").get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ValueError(
            f"{path} has weight_map = {shortened(files)}: it must map each tensor to a file; download it again"
        )
    wrong = {name: file for name, file in files.items() if not isinstance(file, str) or not _inside(file)}
    for name, file in wrong.items():
        raise ValueError(
            f"{path} has {name} in {shortened(file)}: it must be the name of a file inside the folder, without '..'"
        )
    return files


def _inside(file: str) -> bool:
    """Whether a path stays inside its folder, by the rules of POSIX and Windows. Symbolic links are allowed, since
    download caches consist of them."""
    drive, parts = PureWindowsPath(file).drive, {*PurePosixPath(file).parts, *PureWindowsPath(file).parts}
    return not drive and bool(parts) and not parts & {"..", "/", "\\"} and "\0" not in file


def _indexed(folder: Path, index: dict[str, str], stored: dict[Path, set[str]]) -> dict[str, Path]:
    """The file of each tensor in the index. ValueError for a tensor that its file lacks."""
    files = {name: folder / file for name, file in index.items()}
    absent = {name: path for name, path in files.items() if name not in stored[path]}
    for name, path in absent.items():
        raise ValueError(
            f"{folder / _INDEX} has {name} in {path.name}, which does not contain it ({len(absent)} such tensors): "
            "download index and shards again"
        )
    return files


def _files_of(stored: dict[Path, set[str]]) -> dict[str, Path]:
    """The file of each tensor. ValueError for a tensor in two files, which is ambiguous without an index."""
    files: dict[str, Path] = {}
    for path, names in stored.items():
        for name in sorted(names):
            check(
                name not in files,
                f"{name} is in both {files.get(name)} and {path}, and there is no {_INDEX}: remove one file, or add "
                "the index",
            )
            files[name] = path
    return files


def _paths(folder: Path, index: dict[str, str] | None) -> list[Path]:
    """The files to open."""
    if index is not None:
        names = sorted(set(index.values()))
        missing = [name for name in names if not (folder / name).is_file()]
        check(
            not missing, f"{folder} lacks {', '.join(missing)}, which its {_INDEX} lists: download the missing shards"
        )
        # transformers silently prefers the single file.
        check(
            _SINGLE in names or not (folder / _SINGLE).exists(),
            f"{folder} holds {_SINGLE} and an {_INDEX} that does not list it: remove one of these two models",
        )
        return [folder / name for name in names]
    if (folder / _SINGLE).exists():
        return [folder / _SINGLE]
    found = sorted(folder.glob("*.safetensors"))
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    check(
        bool(found) or not pickled,
        f"{folder} has its weights in {', '.join(pickled)} only: unpickling can execute code and is not supported; "
        "convert the files to safetensors if you trust them",
    )
    check(bool(found), f"{folder} has no .safetensors file: weights in this format are required")
    return found

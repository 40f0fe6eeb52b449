"""Folders of safetensors files: read tensor by tensor, written in shards with an index."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from llm_jax.core.checks import check
from llm_jax.core.files import write_atomically

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_REAL = ("F64", "F32", "F16", "BF16")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


class WeightFolder(contextlib.ExitStack):
    """The tensors of a folder, by name; a context that keeps its files open."""

    def __init__(self, folder: Path):
        """ValueError for a folder without safetensors, or with a shard missing or damaged."""
        super().__init__()
        self._files = {}
        for path in _paths(folder):
            try:
                opened = self.enter_context(safe_open(path, framework="numpy"))
            except (SafetensorError, OSError) as error:
                self.close()
                raise ValueError(f"{path} cannot be read ({error}): fetch it again") from error
            self._files |= dict.fromkeys(opened.keys(), opened)

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._files)

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the type it is stored in. ValueError for one that is not of real numbers."""
        kind = self._files[name].get_slice(name).get_dtype()
        check(
            kind in _REAL,
            f"tensor {name} is of type {kind}: only {', '.join(_REAL)} are read, no quantized weights",
        )
        return self._files[name].get_tensor(name)


def write_folder(folder: Path, sizes: dict[str, int], tensor: Callable[[str], np.ndarray], shard_bytes: int) -> None:
    """Writes tensors into files of up to `shard_bytes` each, with an index where there are several.

    Args:
      sizes: bytes of each tensor, in the order of writing.
      tensor: the tensor of a name; asked for once each, when its file is written.

    Raises:
      ValueError: if the folder holds weights already.
    """
    there = sorted(path.name for pattern in ("*.safetensors*", "config.json") for path in folder.glob(pattern))
    check(not there, f"{folder} already holds {', '.join(there)}: choose an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(sizes, shard_bytes))
    names = [_SINGLE] if len(shards) == 1 else [_shard_name(number, len(shards)) for number in range(len(shards))]
    for file, shard in zip(names, shards, strict=True):
        # transformers reads the `format` only to know that the tensors are laid out as PyTorch's.
        part = folder / f"{file}.part"
        try:
            save_file({name: np.ascontiguousarray(tensor(name)) for name in shard}, part, {"format": "pt"})
            part.rename(folder / file)
        except BaseException:
            for written in (part, *(folder / name for name in names)):
                written.unlink(missing_ok=True)
            raise
    if len(shards) > 1:
        places = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        write_atomically(folder / _INDEX, json.dumps(index, indent=2) + "\n")


def _shards(sizes: dict[str, int], limit: int) -> Iterator[list[str]]:
    """Names in files of up to `limit` bytes, or of one tensor that is larger."""
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


def _paths(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if index.exists():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(name for name in names if not (folder / name).exists())
        check(not missing, f"{folder} lacks {', '.join(missing)}, which its {_INDEX} names: fetch the missing shards")
        return [folder / name for name in sorted(names)]
    if (folder / _SINGLE).exists():
        return [folder / _SINGLE]
    found = sorted(folder.glob("*.safetensors"))
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    check(
        bool(found) or not pickled,
        f"{folder} has its weights in {', '.join(pickled)} only: unpickling can run any code, so it is refused; "
        "convert it to safetensors where you trust it",
    )
    check(bool(found), f"{folder} has no .safetensors file: it holds no weights")
    return found

"""gs:// in a folder of this machine, with what an object store has and lacks: for tests in one process.

A folder exists by its objects, an object appears whole when its writer closes it, nothing is appended to or renamed in
one step. Tensorstore, which writes the arrays of checkpoints, is given the same folder.
"""

import io
import os
import shutil
import types
from pathlib import Path

from etils.epath import backend
from fsspec.registry import _registry
from fsspec.spec import AbstractFileSystem
from orbax.checkpoint._src.path import gcs_utils


class FakeStore(AbstractFileSystem):
    """The objects of gs:// as files below `root`."""

    protocol = ("gs", "gcs")
    cachable = False
    root: Path

    def mkdir(self, path, create_parents=True, **kwargs):
        """There are no folders."""

    def makedirs(self, path, exist_ok=False):
        """There are no folders."""

    def rmdir(self, path):
        """There are no folders."""

    def info(self, path, **kwargs):
        file = self._file(path)
        if file.is_file():
            return {"name": self._strip_protocol(path), "size": file.stat().st_size, "type": "file"}
        if file.is_dir() and any(one.is_file() for one in file.rglob("*")):
            return {"name": self._strip_protocol(path), "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path, detail=True, **kwargs):
        found, name = self.info(path), self._strip_protocol(path)
        names = [name] if found["type"] == "file" else [f"{name}/{one.name}" for one in self._file(path).iterdir()]
        listed = [self.info(one) for one in sorted(names) if self.exists(one)]
        return listed if detail else [one["name"] for one in listed]

    def cp_file(self, path1, path2, **kwargs):
        if self._file(path1).is_file():
            self._file(path2).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self._file(path1), self._file(path2))

    def _rm(self, path):
        if self._file(path).is_file():
            self._file(path).unlink()

    def _open(self, path, mode="rb", **kwargs):
        if mode == "rb":
            return open(self._file(path), "rb")
        if mode != "wb":
            raise ValueError(f"mode {mode}: an object is read or written whole")
        return _Upload(self._file(path))

    def _file(self, path) -> Path:
        return self.root / self._strip_protocol(os.fspath(path))


class _Upload(io.BytesIO):
    """An object that is there once it is closed."""

    def __init__(self, file: Path):
        super().__init__()
        self._target = file

    def close(self):
        if not self.closed:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            partial = self._target.with_name(self._target.name + ".partial")
            partial.write_bytes(self.getvalue())
            partial.replace(self._target)
        super().close()


def install(folder: Path, monkeypatch) -> None:
    """Makes gs:// the objects of `folder`, for fsspec, epath, orbax and tensorstore, until the test ends."""

    def kvstore(path: str) -> dict[str, str]:
        bucket, name = gcs_utils.parse_gcs_path(path, add_trailing_slash=False)
        return {"driver": "file", "path": f"{folder}/{bucket}/{name}"}

    monkeypatch.setattr(FakeStore, "root", folder, raising=False)
    for name in FakeStore.protocol:
        monkeypatch.setitem(_registry, name, FakeStore)
    monkeypatch.setattr(gcs_utils, "get_bucket", lambda name: types.SimpleNamespace())
    monkeypatch.setattr(gcs_utils, "get_kvstore_for_gcs", kvstore)
    backend._FileSystemSpecBackend._get_filesystem.cache_clear()

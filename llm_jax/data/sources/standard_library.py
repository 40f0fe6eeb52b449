"""The source code of the running Python's standard library: a corpus of 31 MB that every user already has."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from llm_jax.core.checks import check, check_one_of
from llm_jax.core.configclass import configclass
from llm_jax.data.sources import corpus_files
from llm_jax.data.sources.text_source import InvalidUtf8, Reader, Record, RecordSource, Storage, TextSource

_NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}


@configclass
class StandardLibraryConfig(Reader):
    """Every `.py` file of the running Python's standard library, one document per file, sorted by path.

    Installed packages are left out. Empty files, which only mark packages, are left out too.
    """

    invalid_utf8: InvalidUtf8 = "skip"
    """The library's tests have a few files in other encodings or with deliberate errors (4 of 1,790 in 3.11)."""

    def __post_init__(self) -> None:
        check_one_of("invalid_utf8", self.invalid_utf8, ("error", "skip", "replace"))

    def build(self) -> TextSource:
        return StandardLibrary(self)


class StandardLibrary(RecordSource):
    """Documents of the standard library, named by their path within it."""

    def __init__(self, config: StandardLibraryConfig):
        super().__init__("the Python standard library", config.invalid_utf8, empty="skip")

    def storages(self) -> list[Storage]:
        root = Path(sysconfig.get_path("stdlib"))
        names = sorted(
            name
            for name in (path.relative_to(root) for path in root.rglob("*.py"))
            if not _NOT_LIBRARY.intersection(name.parts)
        )
        check(bool(names), f"{root} has no Python source: use a Python whose standard library is in plain files")
        return [Storage(name.as_posix(), (root / name,)) for name in names]

    def records(self, storage: Storage) -> Iterator[Record]:
        (path,) = storage.paths
        with corpus_files.opened(path) as file:
            yield Record(storage.name, str(path), file.read())

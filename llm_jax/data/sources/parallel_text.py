"""Line-aligned text files, the format of translation data: line i of each file is a field of record i."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from llm_jax.core.checks import check
from llm_jax.core.configclass import configclass
from llm_jax.data.sources import corpus_files
from llm_jax.data.sources.record_text import record_bytes
from llm_jax.data.sources.text_source import (
    InvalidUtf8,
    Reader,
    Record,
    RecordSource,
    Storage,
    TextSource,
    check_policies,
    without_bom,
)


@configclass
class ParallelTextConfig(Reader):
    """Line-aligned files. A document is one line of each, as a JSON object (see `record_text`)."""

    fields: tuple[tuple[str, str], ...]
    """(name, path) of each field: `(("source", "train.en.gz"), ("target", "train.de.gz"))`. Files named `.gz`, `.bz2`,
    `.xz` or `.zst` are decompressed. An empty line is an empty string."""
    invalid_utf8: InvalidUtf8 = "error"

    def __post_init__(self) -> None:
        names = [name for name, _ in self.fields]
        check(
            len(names) > 1 and all(map(all, self.fields)) and len({*names}) == len(names),
            f"fields is {self.fields!r}: it must be two or more pairs of a name, which no other has, and a path",
        )
        check_policies(self.invalid_utf8, "skip")

    def build(self) -> TextSource:
        return ParallelText(self)


class ParallelText(RecordSource):
    """Documents of line-aligned files, named `file:line` after the first file, with lines counted from 1."""

    def __init__(self, config: ParallelTextConfig):
        self._names = tuple(name for name, _ in config.fields)
        self._paths = tuple(path for _, path in config.fields)
        super().__init__(f"parallel text {', '.join(self._paths)}", config.invalid_utf8, "skip", self._names)

    def storages(self) -> list[Storage]:
        found = [corpus_files.find((path,)) for path in self._paths]
        for path, files in zip(self._paths, found, strict=True):
            check(len(files) == 1, f"{path!r} matches {len(files)} files: set the path of a field to one file")
        return [Storage(found[0][0][0], tuple(path for ((_, path),) in found))]

    def records(self, storage: Storage) -> Iterator[Record]:
        """Raises ValueError if the files have different numbers of lines, or none."""
        files, number = [_lines(path) for path in storage.paths], 0
        for number, lines in enumerate(itertools.zip_longest(*files), start=1):
            if None in lines:
                counts = [
                    number - 1 if line is None else number + sum(1 for _ in file)
                    for line, file in zip(lines, files, strict=True)
                ]
                each = ", ".join(f"{path} has {count}" for path, count in zip(storage.paths, counts, strict=True))
                raise ValueError(
                    f"the files have different numbers of lines: {each}; use files whose lines are aligned"
                )
            place = f"{storage.paths[0]}:{number}"
            data = record_bytes(dict(zip(self._names, lines, strict=True)), place)
            yield Record(f"{storage.name}:{number}", place, data)
        check(number > 0, f"{', '.join(map(str, storage.paths))} are empty: use files with one sentence per line")


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file without their ends. Only a line feed, or both bytes of `\\r\\n`, end a line."""
    with corpus_files.opened(path) as file:
        for number, line in enumerate(file):
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            yield without_bom(line) if number == 0 else line

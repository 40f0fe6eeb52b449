"""Plain text files."""

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from llm_jax.core.checks import check, check_one_of
from llm_jax.core.configclass import configclass
from llm_jax.data.sources import corpus_files
from llm_jax.data.sources.text_source import InvalidUtf8, Reader, Record, RecordSource, Storage, TextSource, without_bom

_LINE_END = r"\r?\n"
_BLOCK = 2**20


@configclass
class TextFilesConfig(Reader):
    """Text files, one document each, in the order of `paths` and sorted by name within a folder or glob."""

    paths: tuple[str, ...]
    """Files (also `.gz`, `.bz2`, `.xz` and `.zst`), folders or globs such as `corpus/**/*.txt`."""
    separator: str | None = None
    """Text between the documents of one file, for instance two newlines; None: a file is one document. A line end in
    the separator matches both `\\n` and `\\r\\n` in a file."""
    invalid_utf8: InvalidUtf8 = "error"
    empty_files: Literal["error", "skip"] = "error"
    """error: a file without a character raises an error that names it. skip: it is counted and yields no document."""

    def __post_init__(self) -> None:
        corpus_files.check_paths(self.paths)
        check(
            self.separator != "",
            "separator is '': set it to the text between documents, or to None for one document per file",
        )
        check_one_of("invalid_utf8", self.invalid_utf8, ("error", "skip", "replace"))
        check_one_of("empty_files", self.empty_files, ("error", "skip"))

    def build(self) -> TextSource:
        return TextFiles(self)


class TextFiles(RecordSource):
    """Documents of text files, named by path and, where a separator is set, by number: `folder/file.txt#2`."""

    def __init__(self, config: TextFilesConfig):
        title = f"text files {', '.join(config.paths)}"
        super().__init__(title, config.invalid_utf8, empty="skip", parsing=(config.separator,))
        self._config = config
        lines = re.split(_LINE_END, config.separator or "")
        self._separator = re.compile(_LINE_END.encode().join(re.escape(line.encode()) for line in lines))

    def storages(self) -> list[Storage]:
        return [Storage(name, (path,)) for name, path in corpus_files.find(self._config.paths)]

    def records(self, storage: Storage) -> Iterator[Record]:
        """One record for each document. A whole file is in memory only if it is one document."""
        name, (path,) = storage.name, storage.paths
        with corpus_files.opened(path) as file:
            if self._config.separator is None:
                yield Record(name, str(path), self._not_empty(path, file.read()))
                return
            first = self._not_empty(path, without_bom(file.read(_BLOCK)))
            if not first:
                yield Record(name, str(path), first)
            # UTF-8 can be split by bytes: the bytes of one character never occur within those of another.
            pieces = filter(
                None, _split(itertools.chain([first], iter(lambda: file.read(_BLOCK), b"")), self._separator)
            )
            for number, piece in enumerate(pieces):
                yield Record(f"{name}#{number}", f"{path}#{number}", piece)

    def _not_empty(self, path: Path, data: bytes) -> bytes:
        check(
            len(without_bom(data)) > 0 or self._config.empty_files == "skip",
            f"{path} is empty: remove it, or set empty_files to 'skip'",
        )
        return data


def _split(blocks: Iterable[bytes], separator: re.Pattern[bytes]) -> Iterator[bytes]:
    """Same pieces as `separator.split` on all blocks joined, with only one piece and one block in memory."""
    unsearched, parts = b"", []
    # A match can be longer than the pattern, because of \r before its line ends.
    longest = 2 * len(separator.pattern)
    for block in blocks:
        data, start = unsearched + block, 0
        for match in separator.finditer(data):
            yield b"".join([*parts, data[start : match.start()]])
            parts, start = [], match.end()
        # The end of the data may be the beginning of a separator.
        kept = max(start, len(data) - longest)
        parts.append(data[start:kept])
        unsearched = data[kept:]
    yield b"".join([*parts, unsearched])

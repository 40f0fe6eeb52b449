"""Plain text files."""

import re
from collections.abc import Iterator
from typing import Literal

from llm_jax.core.checks import check, check_one_of
from llm_jax.core.configclass import configclass
from llm_jax.data.sources import files
from llm_jax.data.sources.text_source import (
    Document,
    InvalidUtf8,
    Record,
    RecordSource,
    Storage,
    TextSource,
    without_bom,
)

_LINE_END = r"\r?\n"


@configclass
class TextFilesConfig:
    """Text files, one document each, in the order of `paths` and sorted by name within a folder or glob."""

    paths: tuple[str, ...]
    """Files (also `.gz`, `.bz2`, `.xz` and `.zst`), folders or globs such as `corpus/**/*.txt`."""
    separator: str | None = None
    """Text that stands between the documents of one file, for instance two newlines; None: a file is a document. A line
    end in it matches both `\\n` and `\\r\\n` in a file."""
    invalid_utf8: InvalidUtf8 = "error"
    empty_files: Literal["error", "skip"] = "error"
    """Whether a file without a character is an error that names it, or holds no document and is counted."""

    def __post_init__(self) -> None:
        files.check_paths(self.paths)
        check(self.separator != "", "separator is '': give the text between documents, or None for a document per file")
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
        # A file without `\r\n` is cut at the separator's plain text, which is faster than its pattern.
        lines = re.split(_LINE_END, config.separator or "")
        self._separator, self._pattern = "\n".join(lines), re.compile(_LINE_END.join(map(re.escape, lines)))

    def storages(self) -> list[Storage]:
        return [Storage(name, (path,)) for name, path in files.find(self._config.paths)]

    def records(self, storage: Storage) -> Iterator[Record]:
        name, (path,) = storage.name, storage.paths
        with files.opened(path) as file:
            data = file.read()
        check(
            len(without_bom(data)) > 0 or self._config.empty_files == "skip",
            f"{path} is empty: remove it, or set empty_files to 'skip' to pass over empty files",
        )
        yield Record(name, str(path), data)

    def documents(self, record: Record, text: str) -> Iterator[Document]:
        if not self._separator or not text:
            yield Document(record.name, text)
            return
        pieces = self._pattern.split(text) if "\r\n" in text else text.split(self._separator)
        for number, piece in enumerate(filter(None, pieces)):
            yield Document(f"{record.name}#{number}", piece)

"""Plain text files."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from llm_jax.core.checks import check, check_one_of
from llm_jax.data.sources import files
from llm_jax.data.sources.text_source import Document, InvalidUtf8, Record, RecordSource, TextSource


@dataclasses.dataclass(frozen=True)
class TextFilesConfig:
    """Text files, one document each, in the order of `paths` and sorted by name within a folder or glob."""

    paths: tuple[str, ...]
    """Files (also `.gz`, `.bz2`, `.xz` and `.zst`), folders or globs such as `corpus/**/*.txt`."""
    separator: str | None = None
    """Text that stands between the documents of one file, for instance two newlines; None: a file is a document."""
    invalid_utf8: InvalidUtf8 = "error"
    empty_files: Literal["error", "skip"] = "error"
    """Whether a file without a byte is an error that names it, or holds no document."""

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
        super().__init__(f"text files {', '.join(config.paths)}", config.invalid_utf8, (config.separator,))
        self._config = config

    def records(self) -> Iterator[Record]:
        for name, path in files.find(self._config.paths):
            with files.opened(path) as file:
                data = file.read()
            if data:
                yield Record(name, str(path), data)
            else:
                check(
                    self._config.empty_files == "skip",
                    f"{path} is empty: remove it, or set empty_files to 'skip' to pass over empty files",
                )

    def documents(self, record: Record, text: str) -> Iterator[Document]:
        if self._config.separator is None:
            yield Document(record.name, text)
            return
        pieces = filter(None, text.split(self._config.separator))
        for number, piece in enumerate(pieces):
            yield Document(f"{record.name}#{number}", piece)

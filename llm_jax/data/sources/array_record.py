"""array_record files: the container of random-access records that grain and TFDS use."""

from collections.abc import Iterator
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader

from llm_jax.core.checks import check
from llm_jax.core.configclass import configclass
from llm_jax.data.sources import corpus_files
from llm_jax.data.sources.json_lines import text_field
from llm_jax.data.sources.text_source import (
    Document,
    EmptyText,
    InvalidUtf8,
    Reader,
    Record,
    RecordSource,
    Storage,
    TextSource,
    check_policies,
)

_RECORDS_PER_READ = 1024


@configclass
class ArrayRecordConfig(Reader):
    """array_record files, one document per record."""

    paths: tuple[str, ...]
    """Files, folders or globs such as `corpus/train.array_record-*`."""
    field: str | None = None
    """Field that holds the text, if a record is a JSON object; None: the record's bytes are the text."""
    invalid_utf8: InvalidUtf8 = "error"
    empty: EmptyText = "skip"

    def __post_init__(self) -> None:
        corpus_files.check_paths(self.paths)
        check(
            self.field != "",
            "field is '': set it to the JSON field that holds the text, or to None if records are text",
        )
        check_policies(self.invalid_utf8, self.empty)

    def build(self) -> TextSource:
        return ArrayRecords(self)


class ArrayRecords(RecordSource):
    """Documents of array_record files, named `file:index` with records counted from 0."""

    def __init__(self, config: ArrayRecordConfig):
        title = f"array_record files {', '.join(config.paths)}"
        super().__init__(title, config.invalid_utf8, config.empty, (config.field,))
        self._config = config

    def storages(self) -> list[Storage]:
        return [Storage(name, (path,)) for name, path in corpus_files.find(self._config.paths)]

    def records(self, storage: Storage) -> Iterator[Record]:
        name, (path,) = storage.name, storage.paths
        for index, data in enumerate(_read(path)):
            yield Record(f"{name}:{index}", f"{path}:{index}", data)

    def documents(self, record: Record, text: str) -> Iterator[Document]:
        field = self._config.field
        yield Document(record.name, text if field is None else text_field(record.place, text, field))


def _read(path: Path) -> Iterator[bytes]:
    """Raises ValueError if the file is missing, empty, truncated or not an array_record file."""
    try:
        reader = ArrayRecordReader(str(path))
        count = reader.num_records()
        for start in range(0, count, _RECORDS_PER_READ):
            yield from reader.read(list(range(start, min(start + _RECORDS_PER_READ, count))))
        # A file that could not be opened or parsed raises its error here, in `close`.
        reader.close()
    except RuntimeError as error:
        reason = str(error) or "it is truncated or no array_record file"
        raise ValueError(f"cannot read {path}: {reason}; set the path to a complete array_record file") from error

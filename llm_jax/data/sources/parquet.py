"""Parquet files, the format of text data sets on the Hugging Face Hub."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from llm_jax.core.checks import check, did_you_mean
from llm_jax.core.configclass import configclass
from llm_jax.data.sources import corpus_files
from llm_jax.data.sources.text_source import (
    EmptyText,
    InvalidUtf8,
    Reader,
    Record,
    RecordSource,
    Storage,
    TextSource,
    check_policies,
)

_ROWS_PER_READ = 1024
_READ_BUFFER = 2**20


@configclass
class ParquetConfig(Reader):
    """Parquet files, one document per row."""

    paths: tuple[str, ...]
    """Files, folders or globs such as `corpus/train-*.parquet`."""
    field: str = "text"
    """Column that holds the documents, as strings or bytes."""
    invalid_utf8: InvalidUtf8 = "error"
    empty: EmptyText = "skip"

    def __post_init__(self) -> None:
        corpus_files.check_paths(self.paths)
        check(bool(self.field), "field is '': set it to the column that holds the text")
        check_policies(self.invalid_utf8, self.empty)

    def build(self) -> TextSource:
        return Parquet(self)


class Parquet(RecordSource):
    """Documents of Parquet files, named `file:row` with rows counted from 0."""

    def __init__(self, config: ParquetConfig):
        title = f"Parquet files {', '.join(config.paths)}"
        super().__init__(title, config.invalid_utf8, config.empty, (config.field,))
        self._config = config

    def storages(self) -> list[Storage]:
        return [Storage(name, (path,)) for name, path in corpus_files.find(self._config.paths)]

    def records(self, storage: Storage) -> Iterator[Record]:
        name, (path,) = storage.name, storage.paths
        for row, data in enumerate(_read(path, self._config.field)):
            if data is None:
                raise ValueError(f"{path}:{row}: column {self._config.field!r} holds null, not text; remove the row")
            yield Record(f"{name}:{row}", f"{path}:{row}", data)


def _read(path: Path, field: str) -> Iterator[bytes | None]:
    """The values of one column.

    Raises:
      ValueError: if the file is missing, truncated, damaged or not a Parquet file, or has no such column of text.
    """
    try:
        with (
            # With a small buffer and no pre_buffer a reader holds pages of a row group, not the whole row group.
            pyarrow.parquet.ParquetFile(
                path, buffer_size=_READ_BUFFER, pre_buffer=False, page_checksum_verification=True
            ) as file
        ):
            _check_column(path, file.schema_arrow, field)
            for batch in file.iter_batches(_ROWS_PER_READ, columns=[field], use_threads=False):
                yield from batch.column(0).cast(pyarrow.large_binary()).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read {path}: {reason}; set the path to a complete Parquet file") from error


def _check_column(path: Path, schema: pyarrow.Schema, field: str) -> None:
    names = sorted(schema.names)
    check(
        field in names,
        f"{path} has no column {field!r}{did_you_mean(field, names)}; its columns are {names}: set `field`",
    )
    kind = schema.field(field).type
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    check(
        any(
            is_text(kind)
            for is_text in (
                pyarrow.types.is_string,
                pyarrow.types.is_large_string,
                pyarrow.types.is_string_view,
                pyarrow.types.is_binary,
                pyarrow.types.is_large_binary,
                pyarrow.types.is_binary_view,
            )
        ),
        f"{path}: column {field!r} holds {kind}, not text; its columns are {names}: set `field`",
    )

"""Rows of tables stored by columns, which Parquet and Arrow files have in common."""

import abc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow

from llm_jax.core.checks import check, did_you_mean
from llm_jax.core.configclass import configclass
from llm_jax.data.sources import corpus_files
from llm_jax.data.sources.record_text import record_bytes
from llm_jax.data.sources.text_source import (
    EmptyText,
    InvalidUtf8,
    Reader,
    Record,
    RecordSource,
    Storage,
    check_policies,
)

_BYTES_OF = {
    pyarrow.string(): pyarrow.binary(),
    pyarrow.large_string(): pyarrow.large_binary(),
    pyarrow.string_view(): pyarrow.binary_view(),
}
"""Types of text, and types of bytes with the same layout."""


@configclass
class TableConfig(Reader):
    """Base of readers of tables, one document per row."""

    paths: tuple[str, ...]
    """Files, folders or globs such as `corpus/train-*.parquet`."""
    field: str | None = "text"
    """Column that holds the documents, as strings or bytes; None: a document is the whole row as a JSON object."""
    invalid_utf8: InvalidUtf8 = "error"
    empty: EmptyText = "skip"

    def __post_init__(self) -> None:
        corpus_files.check_paths(self.paths)
        check(self.field != "", "field is '': set it to the column that holds the text, or to None for whole rows")
        check_policies(self.invalid_utf8, self.empty)


class TableRows(RecordSource):
    """Documents of tables, named `file:row` with rows counted from 0."""

    def __init__(self, kind: str, config: TableConfig):
        """`kind` is the format, for messages."""
        title = f"{kind} files {', '.join(config.paths)}"
        super().__init__(title, config.invalid_utf8, config.empty, (config.field,))
        self._kind, self._paths, self._field = kind, config.paths, config.field

    @abc.abstractmethod
    def batches(self, path: Path) -> Iterator[pyarrow.RecordBatch]:
        """Yields the rows of one file, about a thousand at a time. It must call `check_columns` first."""

    def storages(self) -> list[Storage]:
        return [Storage(name, (path,)) for name, path in corpus_files.find(self._paths)]

    def records(self, storage: Storage) -> Iterator[Record]:
        name, (path,) = storage.name, storage.paths
        for row, value in enumerate(self._values(path)):
            place = f"{path}:{row}"
            if value is None:
                raise ValueError(f"{place}: column {self._field!r} holds null, not text; remove the row")
            yield Record(f"{name}:{row}", place, record_bytes(value, place) if self._field is None else value)

    def check_columns(self, path: Path, schema: pyarrow.Schema) -> None:
        """Raises ValueError if the table has no such column of text, or if two columns have one name."""
        names, field = sorted(schema.names), self._field
        if field is None:
            check(
                len({*names}) == len(names), f"{path} has columns of equal names, {names}: rename them, or set `field`"
            )
            return
        check(
            field in names,
            f"{path} has no column {field!r}{did_you_mean(field, names)}; its columns are {names}: set `field`",
        )
        kind = schema.field(field).type
        kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        is_text = _bytes_type(kind) in _BYTES_OF.values()
        check(is_text, f"{path}: column {field!r} holds {kind}, not text; its columns are {names}: set `field`")

    def as_bytes(self, batch: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
        """The columns that are read, with their strings as bytes, since a file may hold strings that are not UTF-8."""
        batch = batch if self._field is None else batch.select([self._field])
        columns = [column.view(_bytes_type(column.type)) for column in batch.columns]
        return pyarrow.RecordBatch.from_arrays(columns, batch.schema.names)

    def _values(self, path: Path) -> Iterator[Any]:
        """The values of the column, as bytes or None; or the rows, as a dict each.

        Raises:
          ValueError: if the file is missing, truncated, damaged or of another format, or lacks the column.
        """
        try:
            for batch in self.batches(path):
                rows = self.as_bytes(batch)
                yield from (rows if self._field is None else rows.column(0).cast(pyarrow.large_binary())).to_pylist()
        except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"cannot read {path}: {reason}; set the path to a complete {self._kind} file") from error


def _bytes_type(kind: pyarrow.DataType) -> pyarrow.DataType:
    """A type of the same layout in memory, with bytes instead of strings at every depth."""
    if kind in _BYTES_OF:
        return _BYTES_OF[kind]
    match kind:
        case pyarrow.BaseExtensionType():
            return _bytes_type(kind.storage_type)
        case pyarrow.DictionaryType():
            return pyarrow.dictionary(kind.index_type, _bytes_type(kind.value_type), kind.ordered)
        case pyarrow.StructType():
            return pyarrow.struct([_bytes_field(field) for field in kind.fields])
        case pyarrow.MapType():
            return pyarrow.map_(_bytes_field(kind.key_field), _bytes_field(kind.item_field), kind.keys_sorted)
        case pyarrow.FixedSizeListType():
            return pyarrow.list_(_bytes_field(kind.value_field), kind.list_size)
        case pyarrow.ListType():
            return pyarrow.list_(_bytes_field(kind.value_field))
        case pyarrow.LargeListType():
            return pyarrow.large_list(_bytes_field(kind.value_field))
        case pyarrow.ListViewType():
            return pyarrow.list_view(_bytes_field(kind.value_field))
        case pyarrow.LargeListViewType():
            return pyarrow.large_list_view(_bytes_field(kind.value_field))
    return kind


def _bytes_field(field: pyarrow.Field) -> pyarrow.Field:
    return field.with_type(_bytes_type(field.type))

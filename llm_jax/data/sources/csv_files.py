"""Files of comma- or tab-separated values: one record per row."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

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
    TextSource,
    check_policies,
)

# The limit of the csv module is 131,072 characters, and a document may be longer.
csv.field_size_limit(2**31 - 1)


@configclass
class CsvConfig(Reader):
    """Files of separated values, one document per row. Every value is a string. Blank lines are skipped."""

    paths: tuple[str, ...]
    """Files (also `.gz`, `.bz2`, `.xz` and `.zst`), folders or globs."""
    delimiter: str = ","
    """Character between the values of a row: `,` or a tab."""
    columns: tuple[str, ...] | None = None
    """Names of the columns of files without a header; None: the first line of each file has the names."""
    quoting: bool = True
    """True: a value in double quotes may contain delimiters, line ends and doubled quotes (RFC 4180).
    False: a quote is a character like others and a line is a row, as in the files of GLUE."""
    field: str | None = None
    """Column that holds the documents; None: a document is the whole row as a JSON object, see `record_text`."""
    invalid_utf8: InvalidUtf8 = "error"
    empty: EmptyText = "skip"

    def __post_init__(self) -> None:
        corpus_files.check_paths(self.paths)
        check(
            len(self.delimiter) == 1 and self.delimiter not in '"\r\n',
            f"delimiter is {self.delimiter!r}: it must be one character, and no quote or line end",
        )
        check(self.field != "", "field is '': set it to the column that holds the text, or to None for whole rows")
        if self.columns is not None:
            _check_columns("columns", self.columns, self.field)
        check_policies(self.invalid_utf8, self.empty)

    def build(self) -> TextSource:
        return CsvFiles(self)


class CsvFiles(RecordSource):
    """Documents of CSV files, named `file:line`: the line, counted from 1, at which the row begins."""

    def __init__(self, config: CsvConfig):
        parsing = (config.delimiter, config.columns, config.quoting, config.field)
        super().__init__(f"CSV files {', '.join(config.paths)}", config.invalid_utf8, config.empty, parsing)
        self._config = config

    def storages(self) -> list[Storage]:
        return [Storage(name, (path,)) for name, path in corpus_files.find(self._config.paths)]

    def records(self, storage: Storage) -> Iterator[Record]:
        """Raises ValueError for a file without rows, and for a row with another number of values than columns."""
        name, (path,) = storage.name, storage.paths
        rows, field = self._rows(path), self._config.field
        columns = self._config.columns or self._header(path, rows)
        line = 0
        for line, values in rows:
            check(
                len(values) == len(columns),
                f"{path}:{line} has {len(values)} values for the {len(columns)} columns {list(columns)}: repair the "
                "row, or set `delimiter`, `quoting` and `columns`",
            )
            row, place = dict(zip(columns, values, strict=True)), f"{path}:{line}"
            data = record_bytes(row, place) if field is None else row[field].encode(errors="surrogateescape")
            yield Record(f"{name}:{line}", place, data)
        check(line > 0, f"{path} has no rows: remove it, or use a file with one record per row")

    def _header(self, path: Path, rows: Iterator[tuple[int, list[str]]]) -> tuple[str, ...]:
        _, names = next(rows, (0, []))
        check(bool(names), f"{path} is empty: remove it, or use a file with names of columns and one record per row")
        _check_columns(str(path), tuple(names), self._config.field)
        return tuple(names)

    def _rows(self, path: Path) -> Iterator[tuple[int, list[str]]]:
        """(line, values) of the rows that are not blank. Bytes that are not UTF-8 become lone surrogates."""
        quoting, delimiter = self._config.quoting, self._config.delimiter
        with corpus_files.opened(path) as file:
            # The csv module itself finds the line ends, within quotes and without.
            newline = "" if quoting else "\n"
            lines = io.TextIOWrapper(cast(BinaryIO, file), "utf-8-sig", "surrogateescape", newline)
            if quoting:
                yield from _quoted(path, lines, delimiter)
                return
            for number, line in enumerate(lines, start=1):
                if values := line.removesuffix("\n").removesuffix("\r"):
                    yield number, values.split(delimiter)


def _quoted(path: Path, lines: io.TextIOWrapper, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line = rows.line_num + 1
        try:
            values = next(rows, None)
        except csv.Error as error:
            raise ValueError(
                f"{path}:{line}: broken CSV ({error}); repair the row, or set quoting to False if quotes are text"
            ) from error
        if values is None:
            return
        if values:
            yield line, values


def _check_columns(place: str, names: tuple[str, ...], field: str | None) -> None:
    """Checks the names of columns, and that `field` is one of them."""
    check(
        all(names) and len({*names}) == len(names) > 0,
        f"{place}: {list(names)} are no names of columns: each must have a name of its own; set `columns` if the first "
        "line is no header",
    )
    check(
        field is None or field in names,
        f"{place}: no column {field!r}{did_you_mean(field or '', names)}; the columns are {list(names)}: set `field`",
    )

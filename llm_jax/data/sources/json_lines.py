"""JSON lines files: one JSON object per line, which is a record or has text in one of its fields."""

import json
from collections.abc import Iterator
from typing import Any

from llm_jax.core.checks import check, did_you_mean
from llm_jax.core.configclass import configclass
from llm_jax.data.sources import corpus_files
from llm_jax.data.sources.record_text import record_text
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
    without_bom,
)

_RECORD = json.JSONDecoder()
# Beside a text numbers are not converted, because Python refuses integers with too many digits.
_TEXT = json.JSONDecoder(parse_int=lambda _: 0, parse_float=lambda _: 0.0)


@configclass
class JsonLinesConfig(Reader):
    """JSON lines files, one document per line. Blank lines are skipped."""

    paths: tuple[str, ...]
    """Files (also `.gz`, `.bz2`, `.xz` and `.zst`), folders or globs."""
    field: str | None = "text"
    """Field of each object that holds the document; None: a document is the whole object, see `record_text`."""
    invalid_utf8: InvalidUtf8 = "error"
    empty: EmptyText = "skip"

    def __post_init__(self) -> None:
        corpus_files.check_paths(self.paths)
        check(
            self.field != "",
            "field is '': set it to the field of each object that holds the text, or to None for whole objects",
        )
        check_policies(self.invalid_utf8, self.empty)

    def build(self) -> TextSource:
        return JsonLines(self)


class JsonLines(RecordSource):
    """Documents of JSON lines files, named `file:line` with lines counted from 1."""

    def __init__(self, config: JsonLinesConfig):
        super().__init__(f"JSON lines {', '.join(config.paths)}", config.invalid_utf8, config.empty, (config.field,))
        self._config = config

    def storages(self) -> list[Storage]:
        return [Storage(name, (path,)) for name, path in corpus_files.find(self._config.paths)]

    def records(self, storage: Storage) -> Iterator[Record]:
        name, (path,) = storage.name, storage.paths
        line_count = 0
        with corpus_files.opened(path) as file:
            for number, line in enumerate(file, start=1):
                if line := without_bom(line).strip():
                    line_count += 1
                    yield Record(f"{name}:{number}", f"{path}:{number}", line)
        check(line_count > 0, f"{path} is empty: remove it, or use a file with one JSON object per line")

    def documents(self, record: Record, text: str) -> Iterator[Document]:
        field, place = self._config.field, record.place
        if field is None:
            yield Document(record.name, record_text(_object(place, text, _RECORD, "a JSON object"), place))
        else:
            yield Document(record.name, text_field(place, text, field))


def text_field(place: str, text: str, field: str) -> str:
    """The string in `field` of the JSON object that `text` holds.

    Raises:
      ValueError: if `text` is not a JSON object, is nested too deeply, or has no such field of type string. The message
        gives `place` and the fields of the object.
    """
    value = _object(place, text, _TEXT, f"a JSON object with {field!r}")
    if isinstance(value.get(field), str):
        return value[field]
    check(
        field in value,
        f"{place}: no field {field!r}{did_you_mean(field, value)}; the fields there are {sorted(value)}: set `field`",
    )
    raise ValueError(
        f"{place}: field {field!r} holds a {type(value[field]).__name__}, not text; the fields there are "
        f"{sorted(value)}: set `field`"
    )


def _object(place: str, text: str, decoder: json.JSONDecoder, required: str) -> dict[str, Any]:
    try:
        value = decoder.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: broken JSON ({error.msg}, column {error.colno}); repair or remove it") from error
    except ValueError as error:
        raise ValueError(f"{place}: a number that Python does not read ({error}); shorten or remove it") from error
    except RecursionError as error:
        raise ValueError(f"{place}: JSON nested deeper than Python reads; flatten or remove it") from error
    check(isinstance(value, dict), f"{place}: a {type(value).__name__} where {required} is required")
    return value

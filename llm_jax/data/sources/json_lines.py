"""JSON lines files: one JSON object per line, with the text in one of its fields."""

import json
from collections.abc import Iterator

from llm_jax.core.checks import check, did_you_mean
from llm_jax.core.configclass import configclass
from llm_jax.data.sources import corpus_files
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

# Numbers are not converted, because Python refuses integers with too many digits.
_JSON = json.JSONDecoder(parse_int=lambda _: 0, parse_float=lambda _: 0.0)


@configclass
class JsonLinesConfig(Reader):
    """JSON lines files, one document per line. Blank lines are skipped."""

    paths: tuple[str, ...]
    """Files (also `.gz`, `.bz2`, `.xz` and `.zst`), folders or globs."""
    field: str = "text"
    """Field of each object that holds the document."""
    invalid_utf8: InvalidUtf8 = "error"
    empty: EmptyText = "skip"

    def __post_init__(self) -> None:
        corpus_files.check_paths(self.paths)
        check(bool(self.field), "field is '': set it to the field of each object that holds the text")
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
        yield Document(record.name, text_field(record.place, text, self._config.field))


def text_field(place: str, text: str, field: str) -> str:
    """The string in `field` of the JSON object that `text` holds.

    Raises:
      ValueError: if `text` is not a JSON object, is nested too deeply, or has no such field of type string. The message
        gives `place` and the fields of the object.
    """
    try:
        value = _JSON.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: broken JSON ({error.msg}, column {error.colno}); repair or remove it") from error
    except RecursionError as error:
        raise ValueError(f"{place}: JSON nested deeper than Python reads; flatten or remove it") from error
    if isinstance(value, dict) and isinstance(value.get(field), str):
        return value[field]
    check(isinstance(value, dict), f"{place}: a {type(value).__name__} where a JSON object with {field!r} is required")
    check(
        field in value,
        f"{place}: no field {field!r}{did_you_mean(field, value)}; the fields there are {sorted(value)}: set `field`",
    )
    raise ValueError(
        f"{place}: field {field!r} holds a {type(value[field]).__name__}, not text; the fields there are "
        f"{sorted(value)}: set `field`"
    )

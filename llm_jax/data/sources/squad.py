"""Files in the format of SQuAD (Rajpurkar et al. 2016): nested JSON of contexts, their questions, and the answers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from llm_jax.core.checks import check, did_you_mean
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

Value = TypeVar("Value", str, int, list)


@configclass
class SquadConfig(Reader):
    """Files in the format of SQuAD 1.1 and 2.0, one document per question.

    A document is a JSON object (see `record_text`) with the fields `id`, `question`, `context` and `answers`, which has
    the lists `text` and `answer_start`, in characters of the context. The lists of an unanswerable question are empty.
    """

    paths: tuple[str, ...]
    """Files (also `.gz`, `.bz2`, `.xz` and `.zst`), folders or globs."""
    invalid_utf8: InvalidUtf8 = "error"

    def __post_init__(self) -> None:
        corpus_files.check_paths(self.paths)
        check_policies(self.invalid_utf8, "skip")

    def build(self) -> TextSource:
        return Squad(self)


class Squad(RecordSource):
    """Documents of SQuAD files, named `file:question` with questions counted from 0."""

    def __init__(self, config: SquadConfig):
        super().__init__(f"SQuAD files {', '.join(config.paths)}", config.invalid_utf8, "skip")
        self._paths = config.paths

    def storages(self) -> list[Storage]:
        return [Storage(name, (path,)) for name, path in corpus_files.find(self._paths)]

    def records(self, storage: Storage) -> Iterator[Record]:
        """Raises ValueError for a file that is not of this format, or has no question. The message gives the place."""
        name, (path,) = storage.name, storage.paths
        count = 0
        for count, (place, question) in enumerate(_questions(path), start=1):
            yield Record(f"{name}:{count - 1}", place, record_bytes(question, place))
        check(count > 0, f"{path} has no questions: remove it, or use a file in the format of SQuAD")


def _questions(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of each question."""
    for a, article in enumerate(_item(str(path), _read(path), "data", list)):
        for p, paragraph in enumerate(_item(f"{path}: data[{a}]", article, "paragraphs", list)):
            place = f"{path}: data[{a}].paragraphs[{p}]"
            context = _item(place, paragraph, "context", str)
            for q, question in enumerate(_item(place, paragraph, "qas", list)):
                yield f"{place}.qas[{q}]", _record(f"{place}.qas[{q}]", question, context)


def _record(place: str, question: Any, context: str) -> dict[str, Any]:
    answers = _item(place, question, "answers", list)
    return {
        "id": _item(place, question, "id", str),
        "question": _item(place, question, "question", str),
        "context": context,
        "answers": {
            "text": [_item(f"{place}.answers", answer, "text", str) for answer in answers],
            "answer_start": [_item(f"{place}.answers", answer, "answer_start", int) for answer in answers],
        },
    }


def _item(place: str, parent: Any, key: str, kind: type[Value]) -> Value:
    """The value of `key`. Raises ValueError if `parent` is not an object with such a value."""
    check(isinstance(parent, dict), f"{place}: a {type(parent).__name__} where an object with {key!r} is required")
    check(key in parent, f"{place}: no {key!r}{did_you_mean(key, parent)}; there are {sorted(parent)}: repair the file")
    value = parent[key]
    check(type(value) is kind, f"{place}: {key!r} is a {type(value).__name__}, not a {kind.__name__}: repair the file")
    return value


def _read(path: Path) -> Any:
    """The whole file. Bytes that are not UTF-8 become lone surrogates, to which the policy of the reader applies."""
    with corpus_files.opened(path) as file:
        text = without_bom(file.read()).decode(errors="surrogateescape")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: broken JSON ({error}); set the path to a complete file of SQuAD") from error

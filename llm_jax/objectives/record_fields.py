"""Reads fields of structured records, and says what is wrong with them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llm_jax.core.checks import did_you_mean
from llm_jax.data.record_examples import StructuredRecord


class Unusable(Exception):
    """A record of which no example can be made. Its message is the reason."""


def text(record: StructuredRecord, field: str) -> str:
    """The text in `field`.

    Raises:
      Unusable: if it is missing, no text, or empty.
    """
    found = value(record, field)
    if not isinstance(found, str):
        raise Unusable(f"field {field!r} holds a {type(found).__name__}, not text")
    if not found.strip():
        raise Unusable(f"field {field!r} is empty")
    return found


def value(record: StructuredRecord, field: str) -> Any:
    """The value of `field`.

    Raises:
      Unusable: if there is no such field.
    """
    if field not in record.fields:
        raise Unusable(
            f"there is no field {field!r}{did_you_mean(field, record.fields)}; the fields there are "
            f"{sorted(record.fields)}"
        )
    return record.fields[field]


def items(record: StructuredRecord, field: str) -> list[Any]:
    """The list in `field`.

    Raises:
      Unusable: if it is missing, no list, or empty.
    """
    found = value(record, field)
    if not isinstance(found, list):
        raise Unusable(f"field {field!r} holds a {type(found).__name__}, not a list")
    if not found:
        raise Unusable(f"field {field!r} is empty")
    return found


def class_number(found: Any, names: Sequence[str], count: int) -> int:
    """The number of a class, from its number or its name.

    Args:
      names: of the classes; empty: classes have numbers only.
      count: number of classes.

    Raises:
      Unusable: if it is no class.
    """
    if names and isinstance(found, str):
        if found not in names:
            raise Unusable(f"label {found!r} is none of the classes {', '.join(names)}")
        return names.index(found)
    number = int(found) if isinstance(found, str) and found.isdecimal() else found
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < count:
        raise Unusable(f"label {found!r} is no class from 0 to {count - 1}")
    return number


def texts_of(document: str, fields: Sequence[str]) -> Iterator[str]:
    """The texts of `fields` of a JSON object, without those that it does not have."""
    found = json.loads(document)
    for field in fields if isinstance(found, Mapping) else ():
        if isinstance(found.get(field), str):
            yield found[field]


def lists_of(document: str, field: str) -> Iterator[list[str]]:
    """The list of texts in `field` of a JSON object, if it has one."""
    found = json.loads(document)
    words = found.get(field) if isinstance(found, Mapping) else None
    if isinstance(words, list) and all(isinstance(word, str) for word in words):
        yield words

"""A record of several fields as one JSON object, which is the text of a document until an objective parses it."""

import datetime
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow


def record_text(fields: Mapping[str, Any], place: str = "record") -> str:
    """The fields as a JSON object in one canonical form, so that equal records are equal texts.

    Fields keep their order. There is no white space between tokens, and no character above ASCII is escaped. Arrays and
    tuples become lists, None becomes null, and dates and times become strings of ISO 8601. A number keeps its value: a
    float has as many digits as distinguish it from other float64. Bytes are decoded as UTF-8; a byte that is not UTF-8
    becomes a lone surrogate, to which the policy `invalid_utf8` of a reader applies.

    Args:
      place: of the record, for messages.

    Raises:
      ValueError: for a number that is not finite, for nesting deeper than Python writes, and for values of other types.
        The message names the field.
    """
    try:
        return _JSON.encode(dict(fields))
    except _REFUSED as error:
        name, reason = _refused_field(fields) or ("", str(error))
        raise ValueError(f"{place}: field {name!r} has no JSON: {reason}; convert it, or remove it") from error


def record_bytes(fields: Mapping[str, Any], place: str) -> bytes:
    """The UTF-8 bytes of `record_text`, with the bytes that are not UTF-8 as they were.

    Raises:
      ValueError: as `record_text`.
    """
    text = record_text(fields, place)
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        # A string of the record has a lone surrogate. It becomes bytes that are not UTF-8 either.
        return text.encode(errors="surrogatepass")


_REFUSED = (ValueError, TypeError, RecursionError)


def _plain(value: Any) -> Any:
    """A value that JSON does not know, as one that it knows. Raises TypeError if there is none."""
    match value:
        case bytes():
            return value.decode(errors="surrogateescape")
        case np.ndarray() | np.generic():
            return value.tolist()
        case pyarrow.Scalar():
            return value.as_py()
        case pyarrow.Array() | pyarrow.ChunkedArray():
            return value.to_pylist()
        case datetime.date() | datetime.time():
            return value.isoformat()
        case Mapping():
            return dict(value)
    raise TypeError(f"it holds a {type(value).__name__}")


_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_plain)


def _refused_field(fields: Mapping[str, Any]) -> tuple[str, str] | None:
    """Name of the first field that cannot be written, and why."""
    for name, value in fields.items():
        try:
            _JSON.encode({name: value})
        except _REFUSED as error:
            return name, str(error)
    return None

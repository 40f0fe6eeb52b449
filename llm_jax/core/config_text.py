"""Conversion of configs, which are frozen dataclasses, to flat text and back.

The text is the only serialised form of an experiment. `llm-jax show` prints it, a run directory stores it, goldens
compare it, and `parse` rebuilds the config from it. One line per leaf:

    = llm_jax.experiment.Experiment
    name = "quickstart"
    model = llm_jax.models.config.TransformerConfig
    model.segments.0 = llm_jax.models.config.Segment
    model.segments.0.repeats = 4

The line of a dataclass gives its type, so that two types with equal fields have different texts. Leaves are JSON.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from llm_jax.core.components import is_own_name, named_type, type_name

_TYPE_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
"""Matches a module and a class, separated by dots."""


def flatten(config: Any) -> dict[str, str]:
    """Maps every path of a config to its text: a type name for a dataclass, JSON for a leaf.

    Raises:
      ValueError: for a leaf that is not None, bool, int, float, str or a tuple of those.
    """
    lines: dict[str, str] = {}
    _flatten("", config, lines)
    return lines


def to_text(config: Any) -> str:
    """Flat text of a config. `parse` is the inverse."""
    return "".join(f"{path} = {text}\n".lstrip() for path, text in flatten(config).items())


def parse(text: str) -> Any:
    """Rebuilds the config that `to_text` wrote.

    Raises:
      ValueError: for a type or fields that the current code does not have. Modules of user-defined types must be
        importable, see `source.loaded`.
    """
    tree: dict = {}
    for line in filter(str.strip, text.splitlines()):
        path, _, value = line.partition("= ")
        node = tree
        for part in filter(None, path.strip().split(".")):
            node = node.setdefault(part, {})
        node["="] = value.strip()
    return _build(tree, "")


def names_own_types(text: str) -> bool:
    """Whether a flat text contains types that are defined outside of this package."""
    values = (line.partition("= ")[2].strip() for line in text.splitlines())
    return any(_TYPE_NAME.fullmatch(value) and not is_own_name(value) for value in values)


def digest(config: Any) -> str:
    """Sixteen hex digits: hash of the config's content."""
    return hashlib.sha256(to_text(config).encode()).hexdigest()[:16]


def diff(old: Any, new: Any) -> list[str]:
    """One line per path at which two configs differ. Empty if they are equal."""
    return differences(flatten(old), flatten(new))


def saved_fields(text: str) -> dict[str, str]:
    """`flatten` of the config whose text an earlier process wrote.

    Fields that are missing in the text have their defaults. If the current code cannot rebuild the config, for example
    because of user-defined types, returns the lines of the text.
    """
    try:
        return flatten(parse(text))
    except (ValueError, TypeError):
        lines = (line.partition("= ") for line in filter(str.strip, text.splitlines()))
        return {path.strip(): value.strip() for path, _, value in lines}


def differences(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    """One line per path at which two flattened configs differ."""
    paths = [*a, *(path for path in b if path not in a)]
    return [
        f"{path or 'experiment'}: {a.get(path, '(absent)')} -> {b.get(path, '(absent)')}"
        for path in paths
        if a.get(path) != b.get(path)
    ]


def _flatten(path: str, value: Any, lines: dict[str, str]) -> None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        lines[path] = type_name(type(value))
        children = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif isinstance(value, tuple) and any(map(_has_dataclass, value)):
        children = [(str(index), item) for index, item in enumerate(value)]
    else:
        _check_leaf(path, value)
        lines[path] = json.dumps(value)
        return
    for name, child in children:
        _flatten(f"{path}.{name}" if path else name, child, lines)


def _has_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) or (isinstance(value, tuple) and any(map(_has_dataclass, value)))


def _check_leaf(path: str, value: Any) -> None:
    if isinstance(value, tuple):
        for item in value:
            _check_leaf(path, item)
    elif value is not None and not isinstance(value, (bool, int, float, str)):
        raise ValueError(
            f"config field {path!r} holds a {type(value).__name__}: a config holds dataclasses, tuples, str, int, "
            "float, bool and None; remove arrays, functions, lists and dicts"
        )


def _build(node: dict, path: str) -> Any:
    value = node.get("=")
    if value is None:
        if set(node) != {str(index) for index in range(len(node))}:
            raise ValueError(
                f"config lines under {path!r} are {sorted(node)}: consecutive indices from 0 are required; restore "
                "the file"
            )
        return tuple(_build(node[str(index)], f"{path}.{index}") for index in range(len(node)))
    if not _TYPE_NAME.fullmatch(value):
        try:
            return _tuples(json.loads(value))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"config line {path!r} holds {value!r}: JSON or the name of a type is required; restore the file"
            ) from error
    kind = named_type(value, path or "experiment", dataclasses.is_dataclass)
    known = {field.name for field in dataclasses.fields(kind)}
    fields = {name: _build(child, f"{path}.{name}".lstrip(".")) for name, child in node.items() if name != "="}
    if unknown := sorted(set(fields) - known):
        raise ValueError(
            f"{path or 'experiment'} ({value}) has fields {unknown} that this version of the code does not know; "
            "use the version that wrote it (the run's card.json names the commit)"
        )
    needed = {field.name for field in dataclasses.fields(kind) if _required(field)}
    if missing := sorted(needed - set(fields)):
        raise ValueError(
            f"{path or 'experiment'} ({value}) lacks the fields {missing} that this version of the code needs; "
            "use the version that wrote it (the run's card.json names the commit)"
        )
    return kind(**fields)


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value

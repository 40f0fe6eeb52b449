"""Overrides config fields from the command line: `--steps 200 --optimizer muon --optimizer.peak-lr 1`."""

import contextlib
import dataclasses
import typing
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import tyro

from llm_jax.core.checks import did_you_mean
from llm_jax.core.components import choices, is_kind, short_name
from llm_jax.core.configclass import deferred, validate

Config = TypeVar("Config")


def overridden(default: Config, words: Sequence[str], prog: str, description: str | None, file: str) -> Config:
    """`default` with the fields changed that `words` set. The rules of configs are checked only on the result.

    A component field accepts the name of a type (see `components.choices`). It becomes a component of that type: fields
    that both types inherit from a common base are kept, others have their defaults. Later words set its fields.

    Args:
      words: command-line arguments.
      prog: name of the command, for the help.
      file: name of the file in which config types are chosen, for messages.

    Raises:
      ValueError: for a value of a wrong type, a word that names a config, or a result that breaks a rule.
      SystemExit: for other words that tyro rejects, with a suggestion in the message, and after the help.
    """
    with deferred():
        default, words = _with_chosen_types(default, words)
        for name, value in _pairs(words):
            _check(default, name, value, file)
        changed = tyro.cli(
            type(default),
            default=default,
            args=list(words),
            prog=prog,
            description=description,
            config=(tyro.conf.AvoidSubcommands,),
        )
    validate(changed)
    return changed


def _with_chosen_types(default: Config, words: Sequence[str]) -> tuple[Config, list[str]]:
    """`default` with the component types that the words choose, and the remaining words."""
    left, words = [], list(words)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        path = name.removeprefix("--").replace("-", "_").split(".")
        field = _field(default, path) if word.startswith("--") else None
        if not equals and words and not words[0].startswith("--"):
            value = words[0]
        kinds = [one for one in _options(field.kind) if is_kind(one)] if field is not None else []
        if field is None or not kinds or not value:
            left.append(word)
            continue
        chosen = _chosen(kinds, value, type(None) in _options(field.kind), name)
        default = _replaced(default, path, None if chosen is None else _of_type(chosen, field.found))
        if not equals:
            words.pop(0)
    return default, left


def _chosen(kinds: list[type], value: str, optional: bool, name: str) -> type | None:
    """The component type that a word names; None for 'none' if the field is optional."""
    named = {word: one for kind in kinds for word, one in choices(kind).items()}
    plain = value.replace("-", "").replace("_", "").lower().removesuffix("config")
    for kind in kinds:
        plain = plain if plain in named else plain.removesuffix(short_name(kind).lower())
    if optional and plain == "none":
        return None
    if plain not in named:
        listed = ", ".join([*named, *(["none"] if optional else [])])
        raise ValueError(f"{name} is {value!r}: it must be one of {listed}{did_you_mean(plain, named)}")
    return named[plain]


def _of_type(chosen: type, former: Any) -> Any:
    """A component with the fields that both types inherit from a common base. Fields without default must be set."""
    bases = [base for base in type(former).__mro__ if base in chosen.__mro__ and dataclasses.is_dataclass(base)]
    kept = {field.name for base in bases for field in dataclasses.fields(base)}
    values = {}
    for field in dataclasses.fields(chosen):
        if field.name in kept:
            values[field.name] = getattr(former, field.name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            values[field.name] = tyro.MISSING
    return chosen(**values)


def _replaced(config: Any, path: list[str], value: Any) -> Any:
    """`config` with the value at `path`, which consists of fields and indices, replaced."""
    if not path:
        return value
    part, *rest = path
    if isinstance(config, tuple):
        items = list(config)
        items[int(part)] = _replaced(items[int(part)], rest, value)
        return tuple(items)
    return dataclasses.replace(config, **{part: _replaced(getattr(config, part), rest, value)})


@dataclasses.dataclass(frozen=True)
class _Field:
    """A field of a config, or an item of a tuple of configs."""

    found: Any
    kind: Any
    """Its annotated type."""


def _field(default: Any, path: list[str]) -> _Field | None:
    """The field at a path; None if it does not exist."""
    found, kind = default, type(default)
    for part in path:
        if isinstance(found, tuple) and part.isdecimal() and int(part) < len(found):
            items = [one for option in _options(kind) for one in typing.get_args(option) if one is not ...]
            found, kind = found[int(part)], items[0] if len(items) == 1 else type(found[int(part)])
        elif dataclasses.is_dataclass(found) and part in {field.name for field in dataclasses.fields(found)}:
            found, kind = getattr(found, part), typing.get_type_hints(type(found))[part]
        else:
            return None
    return _Field(found, kind)


def _options(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return (kind,) if typing.get_origin(kind) is tuple else typing.get_args(kind) or (kind,)


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """(name, value) of every word that begins with two dashes. The value is None if another such word follows."""
    for word, following in zip(words, [*words[1:], "--"], strict=False):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            yield name, value if equals else (None if following.startswith("--") else following)


def _check(default: Any, name: str, value: str | None, file: str) -> None:
    """Checks that the field `name` accepts `value`. For unknown names tyro suggests similar ones."""
    field = _field(default, name.removeprefix("--").replace("-", "_").split("."))
    if field is None:
        return
    found, options = field.found, _options(field.kind)
    if _holds_configs(found) or (found is None and any(map(dataclasses.is_dataclass, options)) and value != "None"):
        fields = [one.name for one in dataclasses.fields(found)] if dataclasses.is_dataclass(found) else []
        changes = f"; its fields are {', '.join(f'{name}.{one}'.replace('_', '-') for one in fields)}" if fields else ""
        types = [one for one in options if isinstance(one, type) and dataclasses.is_dataclass(one)]
        named = [word for one in types if is_kind(one) for word in choices(one)]
        if named:
            raise ValueError(f"{name} has no value: write {name} and one of {', '.join(named)}{changes}")
        other = f" (or another of {', '.join(one.__name__ for one in types)})" if len(types) > 1 else ""
        raise ValueError(
            f"{name} is {'None' if found is None else f'of type {type(found).__name__}'}{other}: the command line "
            f"changes values and kinds of components, not this; set {name.removeprefix('--')} in {file}{changes}"
        )
    if value is not None and options[0] in (int, float) and not (value == "None" and type(None) in options):
        with contextlib.suppress(ValueError):
            options[0](value)
            return
        article = "an int" if options[0] is int else "a float"
        none = " or None" if type(None) in options else ""
        raise ValueError(f"{name} is {value!r}: it must be {article}{none}, such as {found} in {file}")


def _holds_configs(value: Any) -> bool:
    return dataclasses.is_dataclass(value) or (isinstance(value, tuple) and any(map(_holds_configs, value)))

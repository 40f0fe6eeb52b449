"""Fields of a config, overridden by words of a command line: `--steps 200 --optimizer.peak-lr 1e-3`."""

import contextlib
import dataclasses
import typing
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import tyro

from llm_jax.core.configclass import deferred, validate

Config = TypeVar("Config")


def overridden(default: Config, words: Sequence[str], prog: str, description: str | None, file: str) -> Config:
    """`default` with the fields that `words` name changed. The rules of its configs are applied to the result alone.

    Args:
      prog: the command, for the help.
      file: where types of configs are chosen, for messages.

    Raises:
      ValueError: for a value of another type, a word that names a config, or a result that breaks a rule.
      SystemExit: for other words that tyro refuses, whose message names what was probably meant, and after the help.
    """
    for name, value in _pairs(words):
        _check(default, name, value, file)
    with deferred():
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


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """(name, value) of every word that begins with two dashes; no value where another such word follows."""
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            yield name, value if equals else (None if following.startswith("--") else following)


def _check(default: Any, name: str, value: str | None, file: str) -> None:
    """That `value` can be one of the field that `name` names. Of names that are not there tyro tells the nearest."""
    found, kind = default, type(default)
    for part in name.removeprefix("--").replace("-", "_").split("."):
        if isinstance(found, tuple) and part.isdecimal() and int(part) < len(found):
            found, kind = found[int(part)], type(found[int(part)])
        elif dataclasses.is_dataclass(found) and part in {field.name for field in dataclasses.fields(found)}:
            found, kind = getattr(found, part), typing.get_type_hints(type(found))[part]
        else:
            return
    options = typing.get_args(kind) or (kind,)
    if _holds_configs(found) or (found is None and any(map(dataclasses.is_dataclass, options)) and value != "None"):
        fields = [field.name for field in dataclasses.fields(found)] if dataclasses.is_dataclass(found) else []
        changes = f"; its fields are {', '.join(f'{name}.{one}'.replace('_', '-') for one in fields)}" if fields else ""
        choices = [one.__name__ for one in options if isinstance(one, type) and dataclasses.is_dataclass(one)]
        other = f" (or another of {', '.join(choices)})" if len(choices) > 1 else ""
        raise ValueError(
            f"{name} is {'None' if found is None else f'of type {type(found).__name__}'}{other}: the command line "
            f"changes values, not types of configs; set {name.removeprefix('--')} in {file}{changes}"
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

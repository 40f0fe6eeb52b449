"""`@configclass`: a frozen dataclass that checks the types of its fields before its `__post_init__` runs.

    @configclass
    class Cosine:
        warmup_steps: int = 0

        def __post_init__(self):  # sees an int
            check_not_negative(warmup_steps=self.warmup_steps)

Every field must hold a value of its annotated type, at every depth of tuples, unions and literals:

- A float field accepts an int. An int field accepts neither bool nor float. Floats must be finite, unless they are
  annotated `Unbounded`. Integers must fit into 64 bits.
- A numpy scalar is replaced by the equal Python number, because it would promote the dtype of arrays combined with it.
- A tuple field accepts only tuples: a list could be changed after the check, and a str is a sequence of characters.
- A field of a kind of component (see `components`) accepts an instance of any type that derives from it. If that type
  is a frozen dataclass and not a configclass, its fields are checked with those of the config that holds it.

Rules that relate several fields are in the class's `__post_init__`, as in any dataclass. Within `deferred` no rules are
checked, so that a config can be changed before `validate` checks it.
"""

import contextlib
import contextvars
import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np

from llm_jax.core import components
from llm_jax.core.components import is_kind, is_own

_INFINITE = "may be infinite"

Unbounded = Annotated[float, _INFINITE]
"""A float that may be infinite."""

Class = TypeVar("Class", bound=type)

_deferred = contextvars.ContextVar("deferred", default=False)


@typing.overload
def configclass(cls: Class, /) -> Class: ...
@typing.overload
def configclass(*, kw_only: bool = False) -> Callable[[Class], Class]: ...
@typing.dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def configclass(cls: Any = None, /, *, kw_only: bool = False) -> Any:
    """Makes a frozen dataclass that checks its fields against their annotations.

    Annotations are resolved when the first instance is built, so they may name classes that are defined later.
    """
    if cls is None:
        return functools.partial(configclass, kw_only=kw_only)
    rules = getattr(cls, "__post_init__", None) or (lambda self: None)

    def __post_init__(self: Any) -> None:
        if type(self).__post_init__ is not __post_init__ and _is_configclass(type(self)):
            rules(self)  # called by the __post_init__ of a subclass, which has already checked the fields
            return
        if not _deferred.get():
            check_fields(self)
            rules(self)

    __post_init__.__doc__ = rules.__doc__
    cls.__post_init__ = __post_init__
    cls.__configclass__ = cls
    return dataclasses.dataclass(frozen=True, kw_only=kw_only)(cls)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Configs that are built in this context are not checked. Call `validate` on the final config afterwards."""
    token = _deferred.set(True)
    try:
        yield
    finally:
        _deferred.reset(token)


def validate(config: Any) -> None:
    """Checks all rules of `config` and, before these, of the configs that it holds.

    Raises:
      ValueError: for the first value that breaks a rule.
    """
    if isinstance(config, tuple):
        for item in config:
            validate(item)
    elif dataclasses.is_dataclass(config) and not isinstance(config, type):
        for field in dataclasses.fields(config):
            validate(getattr(config, field.name))
        cls: Any = type(config)
        if _is_configclass(cls):
            cls.__post_init__(config)


def check_fields(config: Any, path: str | None = None) -> None:
    """Checks that every field of a dataclass has its annotated type. Replaces numpy scalars by Python numbers.

    Args:
      path: name of the config in messages; None: its type.

    Raises:
      ValueError: gives the field, its value, the required type, and what to write instead.
    """
    path = type(config).__name__ if path is None else path
    for name, (kind, remedy) in _annotations(type(config)).items():
        value = getattr(config, name)
        if _accepts(kind)(value):
            continue
        plain = _plain(value)
        if plain is not value:
            object.__setattr__(config, name, plain)
        if fault := _fault(plain, kind, f"{path}.{name}"):
            raise ValueError(fault + remedy)


def _is_configclass(cls: Any) -> bool:
    """Whether `cls` is decorated, or inherits `__post_init__` unchanged from a decorated class."""
    made = getattr(cls, "__configclass__", None)
    return made is not None and cls.__post_init__ is made.__post_init__


@functools.cache
def _annotations(cls: type) -> dict[str, tuple[Any, str]]:
    """The type of each field by its name, and the 'remedy' of its `metadata`, which messages end with."""
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise ValueError(
            f"{cls.__name__} has an annotation with {error.name!r}, which its module does not define: import or "
            "define it at the top of the file"
        ) from error
    remedies = {field.name: field.metadata.get("remedy") for field in dataclasses.fields(cls)}
    return {name: (hints[name], f"; {remedy}" if remedy else "") for name, remedy in remedies.items()}


@functools.cache
def _parts(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(kind), get_args(kind)


@functools.cache
def _accepts(kind: Any) -> Callable[[Any], bool]:
    """A fast check, which is true only for values that are of type `kind` and hold no numpy scalar. Others, some valid
    ones among them, need `_plain` and `_fault`. Models consist of hundreds of configs, so that this is worth its lines.
    """
    origin, arguments = _parts(kind)
    if kind in (str, bool, type(None)):
        return lambda value: type(value) is kind
    if kind in (int, float):
        return lambda value: type(value) in (int, kind) and -_LARGE < value < _LARGE
    if origin in (Union, types.UnionType):
        options = [_accepts(one) for one in arguments]
        return lambda value: any(accepts(value) for accepts in options)
    if origin is Literal:
        return lambda value: type(value) is str and value in arguments
    if origin is tuple and arguments[1:] == (...,):
        accepts = _accepts(arguments[0])
        return lambda value: type(value) is tuple and all(map(accepts, value))
    if isinstance(kind, type) and not getattr(kind, "_is_protocol", False):
        return lambda value: _is_checked(type(value)) and isinstance(value, kind)
    return lambda value: False


_LARGE = 2**63


@functools.cache
def _is_checked(cls: type) -> bool:
    """Whether every instance of `cls` is a configclass whose own fields are checked."""
    return _is_configclass(cls) and "__dataclass_fields__" in vars(cls)


def _plain(value: Any) -> Any:
    """`value` with numpy scalars replaced by Python numbers. The same object if it has none."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is tuple:
        items = tuple(map(_plain, value))
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value


def _fault(value: Any, kind: Any, path: str) -> str | None:
    """Message why `value` is not of type `kind`; None if it is."""
    origin, arguments = _parts(kind)
    if origin in (Union, types.UnionType):
        faults = []
        for one in sorted(arguments, key=lambda one: one is not type(value)):  # the likely match first
            faults.append(_fault(value, one, path))
            if faults[-1] is None:
                return None
        nested = [fault for fault in faults if fault and not fault.startswith(f"{path} ")]
        return nested[0] if len(nested) == 1 else _mismatch(value, kind, path)
    if origin is tuple:
        if type(value) is not tuple:  # a named tuple would be saved as a plain tuple
            return _mismatch(value, kind, path)
        variadic = arguments[1:] == (...,)
        if not variadic and len(value) != len(arguments):
            return f"{path} is {_shown(value)}: it must have {len(arguments)} values, and has {len(value)}"
        kinds = arguments[:1] * len(value) if variadic else arguments
        items = enumerate(zip(value, kinds, strict=True))
        return next(filter(None, (_fault(item, one, f"{path}[{index}]") for index, (item, one) in items)), None)
    if not _fits(value, kind):
        return _mismatch(value, kind, path)
    if dataclasses.is_dataclass(value) and "__dataclass_fields__" not in vars(type(value)):
        name = type(value).__name__
        return f"{path} is of the class {name}, which is not a dataclass itself: write @configclass above class {name}"
    if dataclasses.is_dataclass(value) and not _is_configclass(type(value)):
        check_fields(value, f"{path} ({type(value).__name__})")
    return None


def _fits(value: Any, kind: Any) -> bool:
    origin, _ = _parts(kind)
    if origin is Annotated:
        plain, *marks = get_args(kind)
        return _fits(value, plain) or (_INFINITE in marks and isinstance(value, float) and not math.isnan(value))
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(kind))
    if kind in (int, float):
        number = isinstance(value, (int, kind)) and not isinstance(value, bool)
        return number and (math.isfinite(value) if isinstance(value, float) else -(2**63) <= value < 2**63)
    if kind is None or kind is type(None):
        return value is None
    kind = origin or kind
    return not isinstance(kind, type) or getattr(kind, "_is_protocol", False) or isinstance(value, kind)


def _mismatch(value: Any, kind: Any, path: str) -> str:
    return f"{path} is {_shown(value)}: it must be {_words(kind)}{_remedy(value, kind)}"


def _shown(value: Any) -> str:
    """The value for a message, with its type if the value does not show it."""
    kind = type(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or kind in (bool, int, float, str, tuple, list, dict, set):
        text = repr(value)
        text = text if len(text) <= 60 else f"{text[:57]}..."
        return text if value is None or isinstance(value, (float, str, tuple)) else f"{text} ({kind.__name__})"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    return f"of type {kind.__module__}.{kind.__qualname__}"


def _words(kind: Any) -> str:
    """A type in words, such as 'an int or None'."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        parts = [_words(one) for one in arguments]
        return ", ".join(parts[:-1]) + f" or {parts[-1]}"
    if origin is Annotated:
        return "a float, which may be infinite" if _INFINITE in arguments else _words(arguments[0])
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is tuple:
        variadic = arguments[1:] == (...,)
        words = [_words(one).removeprefix("an ").removeprefix("a ") for one in arguments if one is not ...]
        return f"a tuple of {words[0]}" if variadic else f"a tuple ({', '.join(words)})"
    if is_kind(kind):
        listed = ", ".join(one.__name__ for one in components.choices(kind).values())
        return f"a {kind.__name__}" + (f" ({listed})" if listed else "")
    simple = {int: "an int", float: "a finite float", str: "a str", bool: "a bool", type(None): "None"}
    return simple.get(kind) or getattr(kind, "__name__", str(kind))


def _names(word: str, option: Any) -> bool:
    name = str(getattr(option, "__name__", "")).lower()
    return word.replace("_", "").lower() in (name, name.removesuffix("config")) and dataclasses.is_dataclass(option)


def _is_str(value: Any) -> bool:
    return type(value) is str


def _remedy(value: Any, kind: Any) -> str:
    """What to write instead; '' if that is not known."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    bases = [one for one in kinds if is_kind(one)]
    if bases and dataclasses.is_dataclass(value) and not isinstance(value, type) and not is_own(type(value)):
        return f"; derive {type(value).__name__} from {bases[0].__name__} of {bases[0].__module__}"
    kinds = [one for kind in kinds for one in (components.choices(kind).values() if is_kind(kind) else (kind,))]
    choices = [one for option in kinds if get_origin(option) is Literal for one in get_args(option)]
    if isinstance(value, str) and (near := difflib.get_close_matches(value, filter(_is_str, choices), 1)):
        return f"; did you mean {near[0]!r}?"
    if hasattr(value, "item") and hasattr(value, "shape"):
        return "; write a number, such as .item() of an array gives"
    converted: list[Any] = []
    for option in kinds:
        if isinstance(value, str) and _names(value, option):
            return f"; write {option.__name__}(...)"
        if get_origin(option) is tuple:
            converted.append(tuple(value) if isinstance(value, (list, set)) else (value,))
        elif option is int and isinstance(value, float) and math.isfinite(value) and value == int(value):
            converted.append(int(value))
        elif option in (int, float) and isinstance(value, str):
            with contextlib.suppress(ValueError):
                converted.append(option(value))
        elif isinstance(value, type) and isinstance(option, type) and issubclass(value, option):
            return f"; write {value.__name__}(...)"
    fitting = [one for one in converted if _fault(one, kind, "") is None]
    return f"; write {fitting[0]!r}" if fitting and not isinstance(value, (bytes, dict)) else ""

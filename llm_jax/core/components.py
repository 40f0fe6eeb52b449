"""Kinds of components: abstract configclasses, such as `Mixer` or `Optimizer`, from which all types of a kind derive.

A kind is open: a type that is defined in a user's file is checked, saved and read back like the types of the package.
The command line can choose only among the types of the package.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

from llm_jax.core.user_file import importable_name

_PACKAGE = __name__.split(".")[0]


def is_kind(cls: Any) -> bool:
    """Whether `cls` is an abstract base class of config types."""
    return inspect.isclass(cls) and inspect.isabstract(cls) and hasattr(cls, "__configclass__")


def choices(kind: type) -> dict[str, type]:
    """The package's types of a kind, by their names on the command line, in alphabetical order.

    A name is the class name in lower case, without 'Config' or the kind at its end.
    """
    found = {_name(one, kind): one for one in _derived(kind) if not is_kind(one) and is_own(one)}
    return dict(sorted(found.items()))


def short_name(cls: type) -> str:
    """The name of a class without 'Config' at its end."""
    return cls.__name__.removesuffix("Config")


def is_own(cls: type) -> bool:
    """Whether a type is defined in this package."""
    return is_own_name(cls.__module__)


def is_own_name(name: str) -> bool:
    """Whether a module or type of this name belongs to this package."""
    return name.split(".")[0] == _PACKAGE


def type_name(cls: type) -> str:
    """The name under which a type is saved: `<module>.<qualified name>`."""
    return f"{importable_name(cls.__module__)}.{cls.__qualname__}"


def named_type(name: str, place: str, fits: Callable[[type], bool]) -> type:
    """The type with the name that `type_name` returned. The module of a user-defined type must already be imported,
    see `source.loaded`.

    Args:
      place: path of the config that has the type, for messages.
      fits: whether a class is allowed there.

    Raises:
      ValueError: if there is no such type, or it is not allowed.
    """
    module, _, attribute = name.rpartition(".")
    ours = is_own_name(name)
    remedy = (
        "which this version of the code does not have; use the version that wrote it (the run's card.json names the "
        "commit)"
        if ours
        else "which cannot be imported: it is a type of a user's own, whose file must be in the run's folder `source`"
    )
    try:
        # Modules outside of the package are not imported here, so that a text cannot import arbitrary modules.
        found = getattr(importlib.import_module(module) if ours else sys.modules[module], attribute)
    except (ImportError, AttributeError, KeyError, ValueError) as error:
        raise ValueError(f"{place} is a {name}, {remedy}") from error
    if not inspect.isclass(found) or not fits(found):
        raise ValueError(f"{place} is a {name}, {remedy}")
    return found


def _name(cls: type, kind: type) -> str:
    return short_name(cls).removesuffix(short_name(kind)).lower()


def _derived(cls: type) -> Iterator[type]:
    for one in cls.__subclasses__():
        yield one
        yield from _derived(one)

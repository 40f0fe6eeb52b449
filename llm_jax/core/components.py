"""Kinds of components: abstract configclasses, such as `Mixer` or `Optimizer`, from which all types of a kind derive.

A kind is open. A type that is defined in a user's own file is checked, saved and read back like those of the package;
the command line can choose among the package's own.
"""

import inspect
from collections.abc import Iterator
from typing import Any

_PACKAGE = __name__.split(".")[0]


def is_kind(cls: Any) -> bool:
    """Whether it is an abstract base of config types."""
    return inspect.isclass(cls) and inspect.isabstract(cls) and hasattr(cls, "__configclass__")


def choices(kind: type) -> dict[str, type]:
    """The package's own types of a kind, by the names that the command line gives them, in alphabetical order.

    A name is that of the class in lower case, without 'Config' or the kind at its end.
    """
    found = {_name(one, kind): one for one in _derived(kind) if not is_kind(one) and is_own(one)}
    return dict(sorted(found.items()))


def short_name(cls: type) -> str:
    """The name of a class without 'Config' at its end."""
    return cls.__name__.removesuffix("Config")


def is_own(cls: type) -> bool:
    """Whether a type is defined in this package."""
    return cls.__module__.split(".")[0] == _PACKAGE


def _name(cls: type, kind: type) -> str:
    return short_name(cls).removesuffix(short_name(kind)).lower()


def _derived(cls: type) -> Iterator[type]:
    for one in cls.__subclasses__():
        yield one
        yield from _derived(one)

"""Facts that must be equal in all processes, and the message about differences."""

import functools
import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path

import flax
import jax
import jaxlib
import numpy as np
import optax

_PACKAGE = Path(__file__).parents[1]
_SHOWN = 8


@functools.cache
def code() -> dict[str, str]:
    """Digest of every source file of this package, and the versions of Python and of the numerical packages."""
    sources = {
        f"{_PACKAGE.name}/{path.relative_to(_PACKAGE)}": hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in sorted(_PACKAGE.rglob("*.py"))
    }
    versions = {package.__name__: package.__version__ for package in (jax, jaxlib, flax, optax, np)}
    return {"python": ".".join(platform.python_version_tuple()[:2])} | versions | sources


def digest(facts: Mapping[str, str]) -> str:
    """Sixteen hex digits: hash of the facts."""
    return hashlib.sha256("\n".join(f"{name}={facts[name]}" for name in sorted(facts)).encode()).hexdigest()[:16]


def differences(names: list[str], facts: list[Mapping[str, str]]) -> str:
    """One line for each process that differs from the first, with its differences. `names` are those of machines."""
    connections = []
    for index, found in enumerate(facts):
        keys = [*facts[0], *(key for key in found if key not in facts[0])]
        differing = [key for key in keys if found.get(key) != facts[0].get(key)]
        told = [f"{key} is {found.get(key, 'absent')}, not {facts[0].get(key, 'absent')}" for key in differing[:_SHOWN]]
        more = [f"and {len(differing) - _SHOWN} more"] if len(differing) > _SHOWN else []
        connections += [f"  host {index} ({names[index]}): {'; '.join(told + more)}"] if told else []
    return "\n".join(connections)

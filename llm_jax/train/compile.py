"""How the programs of training are compiled."""

from collections.abc import Callable
from typing import Any

import jax


def compiled(function: Callable, **options: Any) -> Callable:
    """`jax.jit(function, **options)` with the compiler options that serve the default platform best."""
    return jax.jit(function, **options)

"""A laboratory for transformer research in JAX and Flax."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_jax.experiment import Experiment, load_experiment

__all__ = ["Experiment", "load_experiment"]


def __getattr__(name: str) -> Any:
    # Imported lazily, because this file runs before every module of the package, including the help of commands.
    if name in __all__:
        return getattr(importlib.import_module("llm_jax.experiment"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

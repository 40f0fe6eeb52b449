"""How the programs of training are compiled."""

from collections.abc import Callable
from typing import Any

import jax

from llm_jax.core.dtypes import Precision


def compiled(function: Callable, precision: Precision, **options: Any) -> Callable:
    """`jax.jit(function, **options)` with the compiler options that serve the default platform and `precision` best."""
    return jax.jit(function, compiler_options=_compiler_options(precision), **options)


def _compiler_options(precision: Precision) -> dict[str, Any] | None:
    if jax.default_backend() == "cpu" and precision.compute == "bfloat16" and jax.__version_info__ >= (0, 12):
        # bfloat16 products by oneDNN use the processor's own instructions; the default does for few operand layouts.
        # jax 0.10 compiles the same program with it as without; 0.11 was not tried.
        return {"xla_cpu_experimental_onednn_custom_call": True}
    return None

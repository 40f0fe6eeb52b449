"""How the programs of training are compiled."""

from collections.abc import Callable
from typing import Any

import jax

from llm_jax.core import chips
from llm_jax.core.dtypes import Precision


def compiled(function: Callable, precision: Precision, device: jax.Device | None = None, **options: Any) -> Callable:
    """`jax.jit(function, **options)` with the compiler options that serve `device` and `precision` best.

    Args:
      device: one of those that the program is for, which need not be there; None: the first of this machine.
    """
    device = jax.devices()[0] if device is None else device
    return jax.jit(function, compiler_options=compiler_options(device, precision) or None, **options)


def compiler_options(device: jax.Device, precision: Precision) -> dict[str, Any]:
    """Options of XLA by name."""
    if device.platform == "cpu" and precision.compute == "bfloat16" and jax.__version_info__ >= (0, 12):
        # bfloat16 products by oneDNN use the processor's own instructions; the default does for few operand layouts.
        # jax 0.10 compiles the same program with it as without; 0.11 was not tried.
        return {"xla_cpu_experimental_onednn_custom_call": True}
    chip = chips.chip(device.device_kind)
    return dict(chip.compiler_options) if chip else {}

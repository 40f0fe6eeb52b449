"""The platform for which a program is traced, and the choice between formulations of one computation by it.

The choice is made while tracing. `jax.lax.platform_dependent`, which leaves it to the lowering, traces every
formulation at every call, differentiates all of them, and keeps the residuals of all of them for the backward pass.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax

_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def tracing_for(platform: str) -> Iterator[None]:
    """Context in which programs are traced for `platform` ('cpu', 'gpu', 'tpu'), which this machine need not have. A
    jitted function that was traced before for arguments of the same shapes is not traced again."""
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def current() -> str:
    """The platform of `tracing_for`; outside it that of the default device."""
    if platform := _platform.get():
        return platform
    config: Any = jax.config  # its class does not declare the options
    device = config.jax_default_device
    return getattr(device, "platform", device) or jax.default_backend()


def by_platform(*operands: Any, default: Callable[..., Any], **formulations: Callable[..., Any]) -> Any:
    """The result of the formulation for the current platform.

    Args:
      operands: arguments of the formulation.
      default: the formulation for platforms that are not named.
      formulations: by platform.
    """
    return formulations.get(current(), default)(*operands)

"""Programs as they are for other platforms than this one."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax


@contextlib.contextmanager
def formulated_for(platform: str) -> Iterator[None]:
    """What is traced inside has, of formulations that differ between platforms, those for `platform`, whatever it is
    compiled for."""

    def chosen(*operands: Any, default: Callable, **others: Callable) -> Any:
        return others.get(platform, default)(*operands)

    with mock.patch.object(jax.lax, "platform_dependent", chosen):
        yield

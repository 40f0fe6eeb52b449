"""Typed `jax.custom_vjp`."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax

Result_co = TypeVar("Result_co", covariant=True)
Result = TypeVar("Result")


class WithDerivative(Protocol[Result_co]):
    """Type of a function decorated with `jax.custom_vjp`, which keeps the return type; jax's annotations lose it."""

    def __call__(self, *arguments: Any, **named: Any) -> Result_co: ...
    def defvjp(self, fwd: Callable[..., Any], bwd: Callable[..., Any]) -> Any: ...


def custom_vjp(*constants: int) -> Callable[[Callable[..., Result]], WithDerivative[Result]]:
    """`jax.custom_vjp` as a decorator. `constants` are the indices of the non-array arguments."""

    def decorated(function: Callable[..., Result]) -> WithDerivative[Result]:
        return jax.custom_vjp(function, nondiff_argnums=constants)

    return decorated

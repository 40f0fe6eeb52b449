"""Functions that bring their own derivative."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax

Result_co = TypeVar("Result_co", covariant=True)
Result = TypeVar("Result")


class WithDerivative(Protocol[Result_co]):
    """What `jax.custom_vjp` makes of a function; jax's own annotations lose what the function returns."""

    def __call__(self, *arguments: Any, **named: Any) -> Result_co: ...
    def defvjp(self, fwd: Callable[..., Any], bwd: Callable[..., Any]) -> Any: ...


def custom_vjp(*constants: int) -> Callable[[Callable[..., Result]], WithDerivative[Result]]:
    """`jax.custom_vjp` as a decorator; `constants` are the places of the arguments that are no arrays."""

    def decorated(function: Callable[..., Result]) -> WithDerivative[Result]:
        return jax.custom_vjp(function, nondiff_argnums=constants)

    return decorated

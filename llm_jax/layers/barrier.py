"""Lines that the compiler for TPUs does not fuse across; elsewhere they are nothing.

They stand where matrix products meet the pointwise work of norms and gates. By its compiler's own estimate a TPU runs a
product at 40 to 60 % of its peak when an operand is made on the way, by reductions or several pointwise steps, and at
80 to 90 % when it lies ready.
"""

from typing import TypeVar

import jax

Arrays = TypeVar("Arrays")
"""An array, or a tree of them."""


@jax.custom_vjp
def fence(arrays: Arrays) -> Arrays:
    """`arrays` unchanged: finished before anything is made of them, and so are their gradients."""
    return _finished(arrays)


@jax.custom_vjp
def fence_gradients(arrays: Arrays) -> Arrays:
    """`arrays` unchanged, whose gradients are finished before anything is made of them."""
    return arrays


def _finished(arrays: Arrays) -> Arrays:
    return jax.lax.platform_dependent(arrays, tpu=jax.lax.optimization_barrier, default=lambda arrays: arrays)


fence.defvjp(lambda arrays: (_finished(arrays), None), lambda _, gradients: (_finished(gradients),))
fence_gradients.defvjp(lambda arrays: (arrays, None), lambda _, gradients: (_finished(gradients),))

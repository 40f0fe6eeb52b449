"""What the compiler for CPUs computes once, and what it computes again, where its own choice is the slower one.

It copies elementwise operations into every fusion that reads them, whatever they cost, and it merges equal ones,
however much memory keeps their result. In programs for other platforms both functions are nothing.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Arrays = TypeVar("Arrays")
"""An array, or a tree of them."""


def computed_once(x: jax.Array) -> jax.Array:
    """`x` [..., H], float32 and finite, unchanged: the program stores it, and all that reads it reads what is stored.

    For small arrays that many larger ones read and that are expensive to compute. On CPUs it is a product with the
    identity, which is exact: products are not fused into what reads them, and equal ones are merged. A barrier does not
    serve, because the compiler removes barriers before it fuses.
    """
    identity = np.eye(x.shape[-1], dtype=np.float32)
    product = lambda x: jnp.matmul(x, identity, precision=jax.lax.Precision.HIGHEST)  # noqa: E731
    return jax.lax.platform_dependent(x, cpu=product, default=lambda x: x)


def computed_again(arrays: Arrays) -> Arrays:
    """`arrays` unchanged, but what is computed from them is not merged with what has been computed from them elsewhere.

    For backward passes that compute cheap intermediate results of the forward pass again, in order not to keep them.
    """
    return jax.lax.platform_dependent(arrays, cpu=jax.lax.optimization_barrier, default=lambda arrays: arrays)

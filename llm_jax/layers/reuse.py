"""Control of recomputation in XLA on CPUs, where the compiler's own choice is slower.

The compiler copies elementwise operations into every fusion that reads them, whatever their cost. It merges equal
operations, whatever the memory of their result. On other platforms both functions are no-ops.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.sharding.platforms import by_platform

Arrays = TypeVar("Arrays")
"""An array, or a tree of them."""


def computed_once(x: jax.Array) -> jax.Array:
    """`x` [..., H], float32 and finite, unchanged, but computed once and stored for all its consumers.

    For small arrays that are expensive to compute and that many larger arrays read. On CPUs it is a product with the
    identity matrix, which is exact: products are not fused into their consumers, and equal ones are merged. A barrier
    has no effect here, because the compiler removes barriers before fusion.
    """
    identity = np.eye(x.shape[-1], dtype=np.float32)
    product = lambda x: jnp.matmul(x, identity, precision=jax.lax.Precision.HIGHEST)  # noqa: E731
    return by_platform(x, cpu=product, default=lambda x: x)


def computed_again(arrays: Arrays) -> Arrays:
    """`arrays` unchanged, but operations on them are not merged with equal operations elsewhere.

    For backward passes that recompute cheap intermediate results of the forward pass instead of storing them.
    """
    return by_platform(arrays, cpu=jax.lax.optimization_barrier, default=lambda arrays: arrays)

"""A 32-bit digest of an array's content, computed on the devices that hold the array.

The array files of a checkpoint have no checksums, so a flipped byte would silently change a number. Sums of unsigned
integers do not depend on their order, so the digest is the same under every sharding.
"""

from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.core.trees import named_leaves
from llm_jax.sharding.partition import HOST


def digests(tree: Any) -> dict[str, int]:
    """Digest of every leaf by path name. Blocks until the leaves are computed. Fetches one number per leaf.

    Raises:
      ValueError: for a random key, which checkpoints do not store.
    """
    found = _digests({name: _plain(name, leaf) for name, leaf in named_leaves(tree)})
    return {name: int(digest) for name, digest in jax.device_get(found).items()}


def not_finite(tree: Any) -> list[str]:
    """Path names of the leaves with a NaN or an infinity. Blocks until the leaves are computed."""
    numbers = {name: leaf for name, leaf in named_leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    finite = jax.device_get(_finite({name: _plain(name, leaf) for name, leaf in numbers.items()}))
    return [name for name, sound in finite.items() if not sound]


def _plain(name: str, leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"state leaf {name} is a random key: keys are not stored; derive them from (seed, step, name) with "
            "core.rng.key instead of storing them in the state"
        )
    if isinstance(leaf, jax.Array) and leaf.sharding.memory_kind == HOST:
        # Arrays in host memory are moved to the device, because nothing is computed in host memory.
        leaf = jax.device_put(leaf, leaf.sharding.with_memory_kind("device"))
    return leaf.astype(jnp.uint8) if leaf.dtype == jnp.bool_ else leaf


@jax.jit
def _finite(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), leaves)


@jax.jit
def _digests(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """One jitted function for all leaves: concurrent ones on simulated devices can deadlock in a collective."""
    return jax.tree.map(_digest, leaves)


def _digest(x: jax.Array) -> jax.Array:
    """uint32 scalar. Each element is mixed by a bijection that depends on its position. So a change of a single element
    is always detected, and any other change with probability 1 - 2**-32."""
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    position, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        position += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    # An odd factor has an inverse modulo 2^32, and so has the shifted exclusive or below: different bits stay
    # different.
    mixed = bits * (2 * position + 1)
    return jnp.sum(mixed ^ (mixed >> 15), dtype=jnp.uint32)

"""Broadcasts and table lookups. Their gradients, sums over many tokens, are float32 in every precision.

A bfloat16 sum has 8 significant bits. With terms of one sign and size it stops growing after 256 terms, so a gradient
summed over thousands of tokens would lose their common component.

Legend: R rows of a table, D their width.
"""

import functools

import jax
import jax.numpy as jnp

from llm_jax.sharding import axes
from llm_jax.sharding.partition import constrain, constrain_gradient


def broadcast(x: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """`x` broadcast to `shape` and `dtype` by NumPy's rules; its gradient is summed in float32."""
    return _broadcast(shape, jnp.dtype(dtype), jax.ShapeDtypeStruct(x.shape, x.dtype), x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _broadcast(shape: tuple[int, ...], dtype: jnp.dtype, own: jax.ShapeDtypeStruct, x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(x.astype(dtype), shape)


def _broadcast_backward(shape, dtype, own, _, dy):
    # NumPy aligns shapes at their last axes. Axes that are missing or of size 1 were repeated, so gradients are summed
    # over them.
    aligned = (1,) * (len(shape) - len(own.shape)) + own.shape
    repeated = [axis for axis, size in enumerate(aligned) if size == 1]
    return (jnp.sum(dy, axis=repeated, dtype=jnp.float32).reshape(own.shape).astype(own.dtype),)


_broadcast.defvjp(lambda shape, dtype, own, x: (_broadcast(shape, dtype, own, x), None), _broadcast_backward)


def look_up(table_RD: jax.Array, rows: jax.Array, dtype: jnp.dtype, word: str | None = None) -> jax.Array:
    """Rows of a table in `dtype`, [*rows.shape, D]; the table's gradient is summed in float32.

    Args:
      rows: integer indices; [B, T] if `word` is given.
      word: logical axis of the table's first axis. The table is all-gathered before the lookup: otherwise the compiler
        would shard the width of the activations, and replicate those of the whole batch in the backward pass. None: the
        table has no sharding constraint.
    """
    return _look_up(word, jnp.dtype(dtype), jax.ShapeDtypeStruct(table_RD.shape, table_RD.dtype), table_RD, rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _look_up(
    word: str | None, dtype: jnp.dtype, own: jax.ShapeDtypeStruct, table_RD: jax.Array, rows: jax.Array
) -> jax.Array:
    # The cast precedes the all-gather of `constrain`, so that the table is sent in the compute dtype.
    table_RD = table_RD.astype(dtype)
    # WIDTH is the width of activations, which no strategy shards, so this constraint is the all-gather of FullySharded.
    return (table_RD if word is None else constrain(table_RD, word, axes.WIDTH))[rows]


def _look_up_backward(word, dtype, own, rows, dx):
    if word is not None:
        # Devices that shard the table's gradient exchange the few rows that were read, in the compute dtype, and not
        # the whole table.
        dx = constrain_gradient(dx, axes.BATCH, axes.LENGTH, axes.EMBED)
    table_RD = jnp.zeros(own.shape, jnp.float32).at[rows].add(dx.astype(jnp.float32))
    if word is not None:
        table_RD = constrain_gradient(table_RD, word, axes.EMBED)
    return table_RD.astype(own.dtype), None


_look_up.defvjp(
    lambda word, dtype, own, table_RD, rows: (_look_up(word, dtype, own, table_RD, rows), rows), _look_up_backward
)

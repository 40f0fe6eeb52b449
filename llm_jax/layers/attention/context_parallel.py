"""Context-parallel attention: where the layout shards the sequence axis, its exchange (ring or all-to-all) runs.
Otherwise the model's kernel runs.

Legend: B batch, T query length, S key length, K key/value heads, N heads, H head size, R buckets of relative positions.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from llm_jax.core.checks import check
from llm_jax.layers.attention import ring
from llm_jax.layers.attention.kernels import Kernel
from llm_jax.layers.attention.pairs import Pairs
from llm_jax.sharding import axes, partition
from llm_jax.sharding.device_group import DeviceGroup
from llm_jax.sharding.rules import Ring


def attend(
    kernel: Kernel, q_BNTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, pairs: Pairs, cached: bool
) -> jax.Array:
    """Attention output [B, N, T, H].

    Calls with a KV cache or a single query run `kernel`; the compiler gathers the sequences that they need.

    Raises:
      ValueError: if the sequence length or the heads do not divide as the exchange requires, or with dropout.
    """
    k_BKSH, v_BKSH = _repeated(k_BKSH), _repeated(v_BKSH)
    layout = partition.active()
    exchange = None if layout is None else layout.exchange
    if exchange is None or cached or pairs.shape[0] == 1:
        return kernel.attend(q_BNTH, k_BKSH, v_BKSH, pairs)
    check(
        pairs.drop is None,
        "mixer.dropout requires the attention weights of whole sequences, and the sharding divides sequences over "
        "devices: set mixer.dropout to 0, or use a sharding without ContextParallel",
    )
    if isinstance(exchange, Ring):
        return ring.attend(layout, q_BNTH, k_BKSH, v_BKSH, pairs)
    return _all_to_all(kernel, q_BNTH, k_BKSH, v_BKSH, pairs)


def _repeated(x_BKSH: jax.Array) -> jax.Array:
    """Each key/value head repeated for the devices that share it; see `partition.head_copies`."""
    copies = partition.head_copies(x_BKSH.shape[1])
    if copies == 1:
        return x_BKSH
    return partition.constrain(jnp.repeat(x_BKSH, copies, axis=1), axes.BATCH, axes.KV_HEADS)


def _all_to_all(kernel: Kernel, q_BNTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, pairs: Pairs) -> jax.Array:
    """Attention with whole sequences and a subset of heads on each device (Jacobs et al. 2023, arXiv:2309.14509,
    3.1)."""
    length, heads = partition.device_group(axes.LENGTH), partition.device_group(axes.HEADS)
    devices = length.size * heads.size
    check(
        q_BNTH.shape[1] % devices == 0,
        f"there are {q_BNTH.shape[1]} heads, and AllToAll divides them over {length.size} devices of ContextParallel "
        f"and {heads.size} of TensorParallel: the number of heads must be a multiple of {devices}; reduce "
        "mesh.context, or set ContextParallel.exchange to Ring()",
    )
    queries, keys = (axes.BATCH, axes.HEADS, axes.LENGTH), (axes.BATCH, axes.KV_HEADS, axes.LENGTH)
    here = functools.partial(_whole_rows, kernel, length, heads)
    run = partition.per_device(here, (queries, keys, keys, ring.logical_axes(pairs, len(q_BNTH))), queries)
    return run(q_BNTH, k_BKSH, v_BKSH, pairs)


def _whole_rows(
    kernel: Kernel, length: DeviceGroup, heads: DeviceGroup, q_BNTH, k_BKSH, v_BKSH, pairs: Pairs
) -> jax.Array:
    """The part of one device: all-to-all from sequence shards to whole sequences of fewer heads, attention, inverse."""
    # With more devices per sequence than key/value heads, a key/value head is copied to several devices.
    copies = length.size // math.gcd(length.size, k_BKSH.shape[1])
    k_BKSH, v_BKSH = (jnp.repeat(x, copies, axis=1) for x in (k_BKSH, v_BKSH))
    # Heads are divided, sequences joined: [B, N, T / n, H] -> [B, N / n, T, H] on n devices.
    q_BNTH, k_BKSH, v_BKSH = (length.swapped(x, cut=1, joined=2) for x in (q_BNTH, k_BKSH, v_BKSH))
    count = q_BNTH.shape[1]
    if pairs.bias_RN is not None:
        # The table and the sinks hold the heads of this shard of TensorParallel, of which the exchange gives `count` to
        # this device.
        own_RN = jax.lax.dynamic_slice_in_dim(pairs.bias_RN, length.index * count, count, axis=1)
        pairs = dataclasses.replace(pairs, bias_RN=own_RN)
    if pairs.sink_N is not None:
        pairs = dataclasses.replace(
            pairs, sink_N=jax.lax.dynamic_slice_in_dim(pairs.sink_N, length.index * count, count)
        )
    y_BNTH = kernel.attend(q_BNTH, k_BKSH, v_BKSH, ring.of_heads(pairs, (heads, length), count))
    return length.swapped(y_BNTH, cut=2, joined=1)

"""Ring attention: sequences are sharded over devices; shards of keys and values rotate, queries stay.

Each device accumulates the online softmax of its queries (blocks.py) while the shards of keys and values of all
devices pass, so no device holds a whole sequence. The backward pass rotates the shards again, together with their
gradients (Liu et al. 2023, arXiv:2310.01889, section 3). The next shard is sent while the present one is used.

Under a causal mask the devices with the first shards would be idle most of the time (Brandon et al. 2023,
arXiv:2311.09431, section 3). Then a sequence is divided into two shards per device, and each device holds one from the
front and the one equally far from the end (Llama Team 2024, arXiv:2407.21783, 3.3.2). Devices exchange these shards on
entry and back on exit, so callers are not affected.

Legend: B batch, T query length, S key length, K key/value heads, G query heads per key/value head, N = K * G heads,
H head size, C queries of a block, M = G * C, L blocks of queries of one device, R buckets of relative positions.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from llm_jax.core.checks import check
from llm_jax.layers.attention import blocks
from llm_jax.layers.attention.blocks import BackwardInputs, Cut, Gradients, Keys, OnlineSoftmax
from llm_jax.layers.attention.pairs import Pairs
from llm_jax.layers.attention.softmax import fold
from llm_jax.sharding import axes, partition
from llm_jax.sharding.device_group import DeviceGroup
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.rules import Ring

_QUERIES = (axes.BATCH, axes.HEADS, axes.LENGTH)
_KEYS = (axes.BATCH, axes.KV_HEADS, axes.LENGTH)
# Logarithms of the sums [L, B, K, M, 1]: the blocks of queries of a device are its part of all blocks of the sequence.
_SUMS = (axes.LENGTH, axes.BATCH, axes.KV_HEADS)
_TABLE = (axes.POSITIONS, axes.HEADS)
_SINKS = (axes.HEADS,)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(layout: Layout, q_BNTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, pairs: Pairs) -> jax.Array:
    """Attention output [B, N, T, H] in a layout whose exchange is `Ring`. Fully masked queries give 0.

    Raises:
      ValueError: if the sequence length does not divide as the ring requires.
    """
    return _forward(layout, q_BNTH, k_BKSH, v_BKSH, pairs)[0]


def _forward(layout, q_BNTH, k_BKSH, v_BKSH, pairs):
    inputs = (_QUERIES, _KEYS, _KEYS, logical_axes(pairs, len(q_BNTH)))
    # Both passes may be traced outside the context of the caller, such as inside a pipeline stage, so the layout is an
    # argument.
    with partition.using(layout):
        lines = [partition.device_group(word) for word in (axes.LENGTH, axes.HEADS)]
        here = functools.partial(_forward_here, _plan(layout.exchange, pairs), *lines)
        run = partition.per_device(here, inputs, (_QUERIES, _SUMS, _QUERIES, _KEYS, _KEYS))
        y_BNTH, log_sum_LBKM1, *traded = run(q_BNTH, k_BKSH, v_BKSH, pairs)
    # As in chunked.py: a remat policy that saves "context" avoids a second rotation.
    y_BNTH = checkpoint_name(y_BNTH, "context")
    # Queries, keys and values are saved after the exchange, so that the backward pass does not repeat it.
    return y_BNTH, (*traded, pairs, y_BNTH, checkpoint_name(log_sum_LBKM1, "context"))


def _backward(layout, residuals, dy_BNTH):
    q_BNTH, k_BKSH, v_BKSH, pairs, y_BNTH, log_sum_LBKM1 = residuals
    laid = logical_axes(pairs, len(q_BNTH))
    inputs = (*3 * (_QUERIES,), _SUMS, _KEYS, _KEYS, laid)
    mean_BNT1 = blocks.mean_under(dy_BNTH, y_BNTH)
    with partition.using(layout):
        length, heads, batch = (partition.device_group(axis) for axis in (axes.LENGTH, axes.HEADS, axes.BATCH))
        here = functools.partial(_backward_here, _plan(layout.exchange, pairs), (length, heads, batch))
        run = partition.per_device(here, inputs, (_QUERIES, _KEYS, _KEYS, (laid.bias_RN, laid.sink_N)))
        *gradients, learned = run(q_BNTH, dy_BNTH, mean_BNT1, log_sum_LBKM1, k_BKSH, v_BKSH, pairs)
    return *gradients, dataclasses.replace(pairs, queries=None, slots=None, bias_RN=learned[0], sink_N=learned[1])


attend.defvjp(_forward, _backward)


def logical_axes(pairs: Pairs, rows: int) -> Pairs:
    """Logical axes of the arrays of `pairs` for a batch of `rows` sequences. Every device holds the positions of whole
    sequences, which are small, and its own heads of the bias table and the sinks."""
    laid = jax.tree.map(
        lambda x: (axes.BATCH,) if len(x) == rows else (), dataclasses.replace(pairs, bias_RN=None, sink_N=None)
    )
    table, sinks = (None if x is None else word for x, word in ((pairs.bias_RN, _TABLE), (pairs.sink_N, _SINKS)))
    return dataclasses.replace(laid, bias_RN=table, sink_N=sinks)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Which device holds which shards, and which shards interact.

    A device holds one shard of queries and one of keys, or if `traded` two of each, half as long: front and back.
    """

    devices: int
    traded: bool
    rows: Cut
    """A shard of queries."""
    columns: Cut
    """A shard of keys."""

    @classmethod
    def of(cls, ring: Ring, pairs: Pairs, devices: int, traded: bool) -> "_Plan":
        parts = devices * (2 if traded else 1)
        return cls(devices, traded, *(Cut(length // parts, ring.block) for length in pairs.shape))

    def held(self, device: Any) -> tuple[Any, ...]:
        """Indices of the shards of a device."""
        return (device, 2 * self.devices - 1 - device) if self.traded else (device,)

    def key_range(self, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
        """`blocks.key_range` for all shards of queries, [shards, blocks]."""
        count = self.devices * (2 if self.traded else 1)
        found = [blocks.key_range(pairs, self.rows, number * self.rows.length) for number in range(count)]
        first, last = zip(*found, strict=True)
        return np.stack(first), np.stack(last)

    def visits(self, pairs: Pairs) -> np.ndarray:
        """Number of pairs of blocks that are computed, [devices, hops]."""
        first, last = self.key_range(pairs)
        visits = np.zeros((self.devices, self.devices), int)
        for device, hop in np.ndindex(visits.shape):
            mine = list(self.held(device))
            for other in self.held((device - hop) % self.devices):
                start = other * self.columns.length
                begin, end = self.columns.bounds(first[mine] - start, last[mine] - start)
                visits[device, hop] += np.maximum(end - begin, 0).sum()
        # Hops after the last one in which some device has work are left out: with a window, distant shards are never
        # sent.
        return visits[:, : 1 + np.flatnonzero(visits.any(axis=0)).max(initial=0)]

    def work(self, pairs: Pairs) -> int:
        """Pairs of tokens whose scores are computed in sequence: in each hop all devices wait for the busiest."""
        return int(self.visits(pairs).max(axis=0).sum()) * self.rows.size * self.columns.size


def _plan(ring: Ring, pairs: Pairs) -> _Plan:
    """The plan with the least work: shards are traded if that balances the devices.

    Raises:
      ValueError: if the sequence length does not divide into shards.
    """
    devices = partition.parts(axes.LENGTH)
    for length in pairs.shape:
        check(
            length % devices == 0,
            f"a sequence has {length} tokens and is divided over {devices} devices: set the length to a multiple of "
            f"{devices}, or reduce mesh.context",
        )
    plan, length = _Plan.of(ring, pairs, devices, False), pairs.shape[0]
    uneven = len(set(plan.visits(pairs).sum(axis=1))) > 1
    if pairs.slots is not None or not ring.balanced or not uneven:
        return plan
    check(
        length % (2 * devices) == 0,
        f"a sequence has {length} tokens, and a balanced ring divides it into two shards for each of {devices} "
        f"devices: set the length to a multiple of {2 * devices}, or Ring.balanced to False",
    )
    return min(plan, _Plan.of(ring, pairs, devices, True), key=lambda plan: plan.work(pairs))


@dataclasses.dataclass(frozen=True)
class _Own:
    """The shards of a sequence that one device holds, and their indices."""

    plan: _Plan
    line: DeviceGroup
    reach: tuple[np.ndarray, np.ndarray]

    @property
    def query_blocks(self) -> tuple[jax.Array, ...]:
        """For its blocks of queries, [L] each: index of the shard, index in the shard, and range of keys."""
        plan = self.plan
        numbers = jnp.repeat(jnp.stack(plan.held(self.line.index)), plan.rows.count)
        indices = jnp.tile(jnp.arange(plan.rows.count), len(plan.held(0)))
        return numbers, indices, *(jnp.asarray(limit)[numbers, indices] for limit in self.reach)

    def rows(self, number: jax.Array, index: jax.Array) -> jax.Array:
        """Indices in the sequence of the tokens of a block of queries."""
        rows, shards = self.plan.rows, self.plan.devices * len(self.plan.held(0))
        return rows.indices(number * rows.length, index, rows.length * shards)

    def keys(self, hop: jax.Array | int, shards: tuple[tuple[jax.Array, jax.Array], ...]) -> list[Keys]:
        """The shards on this device after `hop` hops."""
        held = self.plan.held((self.line.index - hop) % self.plan.devices)
        return [Keys(*x, n * self.plan.columns.length) for n, x in zip(held, shards, strict=True)]

    def queries(self, x_BNTH: jax.Array, kv_heads: int) -> jax.Array:
        """Blocks [L, B, K, M, H] of traded queries, or of arrays of their shape."""
        rows, (batch, heads, _, features) = self.plan.rows, x_BNTH.shape
        filled = jnp.stack([rows.filled(part) for part in self._shards(x_BNTH)], axis=2)
        blocks_BNLCH = filled.reshape(batch, heads, -1, rows.size, features)
        return jax.vmap(lambda x_BNCH: fold(x_BNCH, kv_heads), in_axes=2)(blocks_BNLCH)

    def joined(self, x_LBKMH: jax.Array, heads: int) -> jax.Array:
        """The inverse of `queries` and `traded`, [B, N, T, H]."""
        rows, (count, batch, *_, features) = self.plan.rows, x_LBKMH.shape
        blocks_LBNCH = x_LBKMH.reshape(count, batch, heads, rows.size, features)
        parts = jnp.split(blocks_LBNCH, len(self.plan.held(0)))
        return self._row([blocks.joined(part)[:, :, : rows.length] for part in parts])

    def filled(self, *arrays: jax.Array) -> tuple[tuple[jax.Array, ...], ...]:
        """Padded shards of traded keys and values."""
        parts = [map(self.plan.columns.filled, self._shards(x)) for x in arrays]
        return tuple(zip(*parts, strict=True))

    def emptied(self, parts: tuple[jax.Array, ...]) -> jax.Array:
        """The inverse of `filled` and `traded` for one of its arrays."""
        return self._row([part[:, :, : self.plan.columns.length] for part in parts])

    def traded(self, x_BNTH: jax.Array) -> jax.Array:
        """The shards that the device holds during the computation, concatenated, from the contiguous ones that it holds
        outside."""
        if not self.plan.traded:
            return x_BNTH
        # Each device starts with one even and one odd shard. The even shards all have different target devices, and so
        # have the odd ones: one permutation moves all even shards, and one all odd shards.
        even, odd = (self.line.sent(x, self._owners[i::2]) for i, x in enumerate(jnp.split(x_BNTH, 2, axis=2)))
        return jnp.concatenate(self._by_parity(even, odd), axis=2)

    def _shards(self, x_BNTH: jax.Array) -> list[jax.Array]:
        return jnp.split(x_BNTH, len(self.plan.held(0)), axis=2)

    def _row(self, parts: list[jax.Array]) -> jax.Array:
        """The inverse of `traded`, from a list of shards."""
        if not self.plan.traded:
            return parts[0]
        even_odd = self._by_parity(*parts)
        homes = [[self._owners[i::2].index(device) for device in range(self.plan.devices)] for i in range(2)]
        return jnp.concatenate([self.line.sent(x, to) for x, to in zip(even_odd, homes, strict=True)], axis=2)

    @property
    def _owners(self) -> list[int]:
        """The device that holds each shard during the computation."""
        return [min(number, 2 * self.plan.devices - 1 - number) for number in range(2 * self.plan.devices)]

    def _by_parity(self, one: jax.Array, other: jax.Array) -> list[jax.Array]:
        """Front and back shard from the even and the odd one, or the inverse."""
        # Device d of n holds shards d and 2 n - 1 - d, which differ in parity; the front one is even where d is.
        is_even = self.line.index % 2 == 0
        return [jnp.where(is_even, one, other), jnp.where(is_even, other, one)]


def of_heads(pairs: Pairs, lines: tuple[DeviceGroup, ...], heads: int) -> Pairs:
    """`pairs` of a device that holds `heads` heads. Heads are sharded over `lines`, the first of these slowest."""
    all_heads, first = heads, 0
    for line in lines[::-1]:
        first, all_heads = first + line.index * all_heads, all_heads * line.size
    return dataclasses.replace(pairs, heads=all_heads, first_head=first)


def _forward_here(plan: _Plan, line: DeviceGroup, heads: DeviceGroup, q_BNTH, k_BKSH, v_BKSH, pairs: Pairs):
    """The part of one device: output, logarithm of the softmax denominators, and residuals of the backward pass."""
    pairs, own = of_heads(pairs, (heads,), q_BNTH.shape[1]), _Own(plan, line, plan.key_range(pairs))
    traded = q_BNTH, k_BKSH, v_BKSH = tuple(map(own.traded, (q_BNTH, k_BKSH, v_BKSH)))
    q_LBKMH = own.queries(q_BNTH, k_BKSH.shape[1])
    # The state of the online softmax of every block of queries stays here while the keys pass.
    met = jax.vmap(lambda q_BKMH: blocks.initial_state(q_BKMH, v_BKSH.shape[-1], pairs.sink_N))(q_LBKMH)

    def accumulate(hop: jax.Array | int, shards: Any, met: OnlineSoftmax) -> OnlineSoftmax:
        def block(item):
            q_BKMH, met, number, index, first, last = item
            rows = own.rows(number, index)
            for keys in own.keys(hop, shards):
                bounds = plan.columns.bounds(first - keys.start, last - keys.start)
                met = blocks.accumulate(pairs, q_BKMH, rows, keys, plan.columns, bounds, met)
            return met

        return jax.lax.map(block, (q_LBKMH, met, *own.query_blocks))

    def pass_on(carry, hop):
        shards, met = carry
        # The two do not depend on each other, so the next shard is sent during the computation. The last hop sends
        # nothing.
        return (line.passed(shards), accumulate(hop, shards, met)), None

    carry, last = (own.filled(k_BKSH, v_BKSH), met), plan.visits(pairs).shape[1] - 1
    (shards, met), _ = jax.lax.scan(pass_on, carry, jnp.arange(last))
    y_LBKMH, log_sum_LBKM1 = blocks.attended(accumulate(last, shards, met), v_BKSH.dtype)
    return own.joined(y_LBKMH, q_BNTH.shape[1]), log_sum_LBKM1, *traded


_Groups = tuple[DeviceGroup, DeviceGroup, DeviceGroup]
"""The devices that share a sequence, its heads, and the batch."""


def _backward_here(plan: _Plan, groups: _Groups, q_BNTH, dy_BNTH, mean_BNT1, log_sum_LBKM1, k_BKSH, v_BKSH, pairs):
    """The part of one device: gradients of traded queries, keys and values, of the bias table and of the sinks."""
    line, heads, rows = groups
    pairs, own = of_heads(pairs, (heads,), q_BNTH.shape[1]), _Own(plan, line, plan.key_range(pairs))
    dy_BNTH, mean_BNT1 = own.traded(dy_BNTH), own.traded(mean_BNT1)
    q, dy, mean = (own.queries(x, k_BKSH.shape[1]) for x in (q_BNTH, dy_BNTH, mean_BNT1))
    asked = BackwardInputs(q, dy, mean, log_sum_LBKM1)
    shards = own.filled(k_BKSH, v_BKSH)

    def accumulate(hop: jax.Array | int, shards: Any, dq_LBKMH: jax.Array, dtable: jax.Array | None):
        """Gradients of the shards on this device; those of queries and bias table include this hop."""
        all_keys = own.keys(hop, shards)

        def block(carry, item):
            gradients, dtable = carry
            asked, dq_BKMH, number, index, first, last = item
            here = own.rows(number, index)
            for one, keys in enumerate(all_keys):
                bounds = plan.columns.bounds(first - keys.start, last - keys.start)
                dk_BKSH, dv_BKSH = gradients[one]
                start = (Gradients(dk_BKSH, dv_BKSH, dtable), dq_BKMH)
                found, dq_BKMH = blocks.accumulate_backward(pairs, asked, here, keys, plan.columns, bounds, start)
                gradients, dtable = (*gradients[:one], found[:2], *gradients[one + 1 :]), found.bias_RN
            return (gradients, dtable), dq_BKMH

        # A scan over the blocks of queries: gradients of the keys here and of the table are carried, those of queries
        # returned.
        start = (jax.tree.map(blocks.zeros, shards), dtable)
        return jax.lax.scan(block, start, (asked, dq_LBKMH, *own.query_blocks))

    def pass_on(carry, hop):
        shards, gradients, dq_LBKMH, dtable = carry
        # `arrived` are the gradients that other devices have found for the shard that is here now.
        coming, arrived = line.passed(shards), line.passed(gradients)
        (gradients, dtable), dq_LBKMH = accumulate(hop, shards, dq_LBKMH, dtable)
        return (coming, jax.tree.map(jnp.add, arrived, gradients), dq_LBKMH, dtable), None

    # A device's own shard comes first. The gradients of a shard follow it one hop behind, so that they are sent while
    # the next gradients are computed.
    last = plan.visits(pairs).shape[1] - 1
    (gradients, dtable), dq_LBKMH = accumulate(0, shards, *jax.tree.map(blocks.zeros, (asked.q_BKMH, pairs.bias_RN)))
    if last:
        carry = (line.passed(shards), gradients, dq_LBKMH, dtable)
        (shards, gradients, dq_LBKMH, dtable), _ = jax.lax.scan(pass_on, carry, jnp.arange(1, last))
        arrived = line.passed(gradients)
        (gradients, dtable), dq_LBKMH = accumulate(last, shards, dq_LBKMH, dtable)
        # The gradients are `last` devices away from their shards: one exchange returns them, not the remaining hops.
        gradients = line.passed(jax.tree.map(jnp.add, arrived, gradients), by=-last)
    dk_BKSH, dv_BKSH = (own.emptied(parts).astype(k_BKSH.dtype) for parts in zip(*gradients, strict=True))
    dq_BNTH = own.joined(dq_LBKMH.astype(q_BNTH.dtype), q_BNTH.shape[1])
    # [L, B, K, M, 1] -> [L, B, N, C, 1]
    own_heads = lambda x_LBKM1: x_LBKM1.reshape(*x_LBKM1.shape[:2], q_BNTH.shape[1], -1, 1)  # noqa: E731
    dsink_N = blocks.sinks_gradient(pairs.sink_N, own_heads(asked.mean_BKM1), own_heads(log_sum_LBKM1))
    # All tokens of all sequences share the table and the sinks, so they are summed over the sequence and the batch.
    learned = (dtable, dsink_N)
    total = jax.tree.map(lambda found, given: found.astype(given.dtype), learned, (pairs.bias_RN, pairs.sink_N))
    return dq_BNTH, dk_BKSH, dv_BKSH, rows.summed(line.summed(total))

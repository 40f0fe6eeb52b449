"""The diagonal linear recurrence h_t = decay_t h_(t-1) + input_t.

Legend: B batch, T length, R channels.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm_jax.sharding import axes, partition
from llm_jax.sharding.device_group import DeviceGroup


def linear_recurrence(decay_BTR: jax.Array, input_BTR: jax.Array, before_BR: jax.Array) -> jax.Array:
    """h [B, T, R] of a sequence with the initial value h = `before_BR`; all float32.

    If the sequence axis is sharded, every device gets whole sequences of a subset of the channels, which are
    independent. If the channels do not divide, the compiler shards the computation.
    """
    rows, start = (axes.BATCH, axes.LENGTH, axes.MLP), (axes.BATCH, axes.MLP)
    length = partition.device_group(axes.LENGTH)
    channels = length.size * partition.parts(axes.MLP)
    if length.size == 1 or decay_BTR.shape[2] % channels or not partition.divides(decay_BTR.shape, rows):
        return _along(decay_BTR, input_BTR, before_BR)
    run = partition.per_device(functools.partial(_whole_rows, length), (rows, rows, start), rows)
    return run(decay_BTR, input_BTR, before_BR)


def _whole_rows(length: DeviceGroup, decay_BTR: jax.Array, input_BTR: jax.Array, before_BR: jax.Array) -> jax.Array:
    """The part of one device."""
    decay_BTR, input_BTR = (length.swapped(x, cut=2, joined=1) for x in (decay_BTR, input_BTR))
    count = decay_BTR.shape[2]
    # The initial values are not sharded over these devices: each takes those of its channels.
    before_BR = jax.lax.dynamic_slice_in_dim(before_BR, length.index * count, count, axis=1)
    return length.swapped(_along(decay_BTR, input_BTR, before_BR), cut=1, joined=2)


@jax.custom_vjp
def _along(decay_BTR: jax.Array, input_BTR: jax.Array, before_BR: jax.Array) -> jax.Array:
    """`linear_recurrence` of sequences that are not sharded.

    It is an associative scan of pairs: log T steps over the whole sequence instead of T (Blelloch 1990). The backward
    pass is the same recurrence in reverse and saves decay and h only, whereas autodiff would save the partial results
    of every step.
    """
    return _recurrence(decay_BTR, input_BTR, before_BR)[0]


def _recurrence(decay_BTR, input_BTR, before_BR):
    # The initial value enters as a part of the first input, so that the scan starts from zero.
    first_BR = input_BTR[:, 0] + decay_BTR[:, 0] * before_BR
    # Named here and not by the caller: the backward pass needs this very array, and a remat policy that saves another
    # one would repeat the scan.
    h_BTR = checkpoint_name(_scan(decay_BTR, input_BTR.at[:, 0].set(first_BR)), "context")
    return h_BTR, (decay_BTR, h_BTR, before_BR)


def _scan(decay_BTR: jax.Array, input_BTR: jax.Array, reverse: bool = False) -> jax.Array:
    # The composition of h -> a h + b and h -> c h + d is h -> c a h + (c b + d).
    def joined(first, second):
        return first[0] * second[0], second[0] * first[1] + second[1]

    return jax.lax.associative_scan(joined, (decay_BTR, input_BTR), reverse, axis=1)[1]


def _recurrence_backward(residuals, dh_BTR):
    decay_BTR, h_BTR, before_BR = residuals
    # The gradient of h_t is its own plus that of h_(t+1), times the decay of step t + 1.
    next_BTR = jnp.concatenate([decay_BTR[:, 1:], jnp.zeros_like(decay_BTR[:, :1])], axis=1)
    dinput_BTR = _scan(next_BTR, dh_BTR, reverse=True)
    # The gradient of decay_t is that of h_t times h_(t-1).
    earlier_BTR = jnp.concatenate([before_BR[:, None], h_BTR[:, :-1]], axis=1)
    return dinput_BTR * earlier_BTR, dinput_BTR, dinput_BTR[:, 0] * decay_BTR[:, 0]


_along.defvjp(_recurrence, _recurrence_backward)

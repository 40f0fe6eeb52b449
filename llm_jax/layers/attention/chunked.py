"""Blockwise attention whose memory is linear in the sequence length, forward and backward.

Each block of queries iterates over the blocks of keys that the mask can allow; see blocks.py.

Legend: B batch, T query length, S key length, K key/value heads, G query heads per key/value head, N = K * G heads,
H head size, C queries of a block, M = G * C, D keys of a block.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from llm_jax.layers.attention import blocks
from llm_jax.layers.attention.blocks import BackwardInputs, Cut, Gradients, Keys
from llm_jax.layers.attention.pairs import Pairs
from llm_jax.layers.attention.softmax import fold
from llm_jax.layers.derivative import custom_vjp


def visits(pairs: Pairs, block: int) -> tuple[np.ndarray, np.ndarray]:
    """First, and one past the last, of the blocks of keys for each block of queries, [blocks of queries] each."""
    rows, columns = _cuts(pairs, block)
    first, last = blocks.key_range(pairs, rows)
    return columns.bounds(first, last)


@custom_vjp(0)
def attend(block: int, q_BNTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, pairs: Pairs) -> jax.Array:
    """Attention output [B, N, T, H], with blocks of `block` queries and keys. Fully masked queries give 0."""
    return _forward(block, q_BNTH, k_BKSH, v_BKSH, pairs)[0]


def _forward(block, q_BNTH, k_BKSH, v_BKSH, pairs):
    rows, columns = _cuts(pairs, block)
    q, keys = rows.filled(q_BNTH), Keys(columns.filled(k_BKSH), columns.filled(v_BKSH), 0)

    def queries(item):
        index, first, last = item
        q_BKMH = fold(rows.part(q, index), k_BKSH.shape[1])
        start = blocks.initial_state(q_BKMH, v_BKSH.shape[-1], pairs.sink_N)
        met = blocks.accumulate(pairs, q_BKMH, rows.indices(0, index, rows.length), keys, columns, (first, last), start)
        return tuple(x.reshape(*q_BNTH.shape[:2], rows.size, -1) for x in blocks.attended(met, v_BKSH.dtype))

    # The logarithms keep the padding of the last block, because the backward pass reads them in blocks of the same
    # size.
    y, log_sum_BNT1 = (blocks.joined(x) for x in jax.lax.map(queries, _query_blocks(pairs, block)))
    # The backward pass needs both, and recomputing them would run the loop again. A remat policy that saves "context"
    # saves both.
    y_BNTH = checkpoint_name(y[:, :, : rows.length], "context")
    return y_BNTH, (q_BNTH, k_BKSH, v_BKSH, pairs, y_BNTH, checkpoint_name(log_sum_BNT1, "context"))


def _backward(block, residuals, dy_BNTH):
    q_BNTH, k_BKSH, v_BKSH, pairs, y_BNTH, log_sum_BNT1 = residuals
    rows, columns = _cuts(pairs, block)
    keys = Keys(columns.filled(k_BKSH), columns.filled(v_BKSH), 0)
    mean_BNT1 = blocks.mean_under(dy_BNTH, y_BNTH)
    by_query = (*map(rows.filled, (q_BNTH, dy_BNTH, mean_BNT1)), log_sum_BNT1)

    def queries(gradients: Gradients, item):
        index, first, last = item
        asked = BackwardInputs(*(fold(rows.part(x, index), k_BKSH.shape[1]) for x in by_query))
        start = (gradients, blocks.zeros(asked.q_BKMH))
        indices = rows.indices(0, index, rows.length)
        gradients, dq_BKMH = blocks.accumulate_backward(pairs, asked, indices, keys, columns, (first, last), start)
        return gradients, dq_BKMH.reshape(*q_BNTH.shape[:2], rows.size, -1).astype(q_BNTH.dtype)

    # The loops are nested as in the forward pass, queries outside and keys inside: the gradients of all keys are
    # carried, and those of a block of queries are complete after its inner loop.
    start = Gradients.zeros(keys, pairs.bias_RN)
    (dk, dv, dtable), dq = jax.lax.scan(queries, start, _query_blocks(pairs, block))
    dk_BKSH, dv_BKSH = (x[:, :, : columns.length].astype(k_BKSH.dtype) for x in (dk, dv))
    dsink_N = blocks.sinks_gradient(pairs.sink_N, mean_BNT1, log_sum_BNT1[:, :, : rows.length])
    dtable = jax.tree.map(lambda sum_RN, table_RN: sum_RN.astype(table_RN.dtype), dtable, pairs.bias_RN)
    return (
        blocks.joined(dq)[:, :, : rows.length],
        dk_BKSH,
        dv_BKSH,
        # Positions and segment ids are integers without gradients.
        dataclasses.replace(pairs, queries=None, slots=None, bias_RN=dtable, sink_N=dsink_N),
    )


attend.defvjp(_forward, _backward)


def _cuts(pairs: Pairs, block: int) -> tuple[Cut, Cut]:
    """The blocks of queries and those of keys."""
    length, slots = pairs.shape
    return Cut(length, block), Cut(slots, block)


def _query_blocks(pairs: Pairs, block: int) -> tuple[jax.Array, ...]:
    """Index of each block of queries, and the first and one past the last of its blocks of keys."""
    first, last = visits(pairs, block)
    return jnp.arange(len(first)), jnp.asarray(first), jnp.asarray(last)

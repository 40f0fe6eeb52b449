"""Calls of jax's splash attention, a Pallas kernel for TPUs.

Legend: B batch, T length, K key/value heads, N heads, H head size.
"""

import math

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from llm_jax.core.checks import check
from llm_jax.layers.attention.masks import Bidirectional, BidirectionalWindow, Causal, Mask
from llm_jax.layers.attention.pairs import Pairs
from llm_jax.sharding import axes, partition

LANES = 128
"""The sequence length must be a multiple of this."""


def attend(block: int, q_BNTH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array, pairs: Pairs) -> jax.Array:
    """Self-attention output [B, N, T, H], with blocks of at most `block` queries and keys.

    Raises:
      ValueError: if the kernel does not support the mask.
    """
    length, head_dim = q_BNTH.shape[2:]
    scale = head_dim**-0.5 if pairs.scores.scale is None else pairs.scores.scale

    def local(q_BNTH, k_BKTH, v_BKTH, segment_ids_BT):
        # Blocks must divide the length. Both are multiples of LANES, so their common divisor is one too.
        kernel = _kernel(math.gcd(block, length), pairs.mask, q_BNTH.shape[1], length, pairs.scores.softcap)

        def row(q_NTH, k_KTH, v_KTH, segment_ids_T):
            segments = None if segment_ids_T is None else splash.SegmentIds(segment_ids_T, segment_ids_T)
            return kernel(q_NTH, k_KTH, v_KTH, segments)

        return jax.vmap(row)(q_BNTH, k_BKTH, v_BKTH, segment_ids_BT)

    queries, keys, segment_ids_BT = (axes.BATCH, axes.HEADS), (axes.BATCH, axes.KV_HEADS), pairs.queries.segment_ids_BT
    rows = None if segment_ids_BT is None else (axes.BATCH,)
    # The compiler cannot partition a Pallas call, so every device calls it for its own sequences and heads.
    run = partition.per_device(local, (queries, keys, keys, rows), queries)
    # The kernel does not scale the scores.
    return run(q_BNTH * scale, k_BKTH, v_BKTH, segment_ids_BT)


def _kernel(block: int, mask: Mask, heads: int, length: int, softcap: float | None) -> splash.SplashAttentionKernel:
    """The kernel. Its residuals have the checkpoint name `context` for remat policies."""
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    return splash.make_splash_mha(
        masks.MultiHeadMask([_mask(mask, length)] * heads),
        block_sizes=splash.BlockSizes(**dict.fromkeys(names, block)),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name="context",
    )


def _mask(mask: Mask, length: int) -> masks.Mask:
    shape = (length, length)
    if isinstance(mask, Causal):
        # `window` counts the token itself; LocalMask counts the tokens to its left and to its right.
        return masks.CausalMask(shape) if mask.window is None else masks.LocalMask(shape, (mask.window - 1, 0), 0)
    if isinstance(mask, BidirectionalWindow):
        return masks.LocalMask(shape, (mask.reach, mask.reach), 0)
    check(
        isinstance(mask, Bidirectional),
        f"mask is {type(mask).__name__} and kernel SplashKernel supports Causal, Bidirectional and "
        "BidirectionalWindow: set kernel to ChunkedKernel or BlockedKernel",
    )
    return masks.FullMask(shape)

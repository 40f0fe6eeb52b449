"""Attention kernels: softmax(q k^T) v in interchangeable forms, chosen by config type. PlainKernel is the formula.

Legend: B batch, T query length, S key length, K key/value heads, N heads, H head size.
"""

import abc
import functools
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm_jax.core.checks import check, check_one_of, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.layers.attention import chunked, fused, splash
from llm_jax.layers.attention.pairs import WHOLE, Pairs
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.attention.softmax import attend


@configclass
class Kernel(abc.ABC):
    """An implementation of attention. All kernels compute the same function; for a query whose keys are all masked
    (padding) the output is finite and not used. To add a kernel, derive a configclass from it."""

    holds_weights: ClassVar[bool] = False
    """Whether it materialises the attention weights as an array, which dropout requires."""
    mixed_sizes: ClassVar[bool] = False
    """Whether the head size of values may differ from that of queries and keys."""

    @abc.abstractmethod
    def attend(self, q_BNTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, pairs: Pairs) -> jax.Array:
        """softmax(q k^T) v with the mask, bias and scale of `pairs`, [B, N, T, H]."""

    def check(self, scores: ScoresConfig) -> None:
        """Raises ValueError if the kernel cannot compute `scores`."""


@configclass
class PlainKernel(Kernel):
    """softmax(q k^T / sqrt(H)) v (Vaswani et al. 2017, arXiv:1706.03762, eq. 1), literally: the reference for all other
    kernels. Memory and work grow with T * S."""

    holds_weights = mixed_sizes = True

    def attend(self, q_BNTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, pairs: Pairs) -> jax.Array:
        """[B, N, T, H]."""
        weights_BNTS = weights(q_BNTH, k_BKSH, pairs)
        if pairs.drop is not None:
            kept = pairs.drop.kept(weights_BNTS.shape)
            weights_BNTS = jnp.where(kept, weights_BNTS / (1 - pairs.drop.rate), 0)
        v_BNSH = jnp.repeat(v_BKSH, q_BNTH.shape[1] // v_BKSH.shape[1], axis=1)
        y_BNTH = jnp.einsum("BNTS,BNSH->BNTH", weights_BNTS.astype(v_BKSH.dtype), v_BNSH)
        return checkpoint_name(y_BNTH, "context")  # kept by the remat policy `projections`


def weights(q_BNTH: jax.Array, k_BKSH: jax.Array, pairs: Pairs) -> jax.Array:
    """`softmax_weights` with the mask, bias and scale of `pairs`: the weights by which any kernel multiplies values,
    without dropout."""
    config, bias_BNTS = pairs.scores, pairs.bias(q_BNTH.shape[1])
    return softmax_weights(q_BNTH, k_BKSH, pairs.allowed(), bias_BNTS, config.scale, config.softcap, pairs.sink_N)


def softmax_weights(
    q_BNTH: jax.Array,
    k_BKSH: jax.Array,
    allowed: jax.Array,
    bias_BNTS: jax.Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sink_N: jax.Array | None = None,
) -> jax.Array:
    """softmax(softcap(q k^T * scale) + bias), float32 [B, N, T, S]. The weights of a query add up to one, or with a
    sink to less; those of a query whose keys are all masked are equal.

    Args:
      allowed: boolean [B or 1, T or 1, S or 1], the keys that each query may read.
      scale: None: 1 / sqrt(H).
      softcap: None: scores are not capped.
      sink_N: logits of one more key for each head, without a value.
    """
    heads, head_dim = q_BNTH.shape[1], q_BNTH.shape[3]
    # Groups of query heads share a key head (Ainslie et al. 2023, arXiv:2305.13245).
    k_BNSH = jnp.repeat(k_BKSH, heads // k_BKSH.shape[1], axis=1)
    # float32 results of products in the compute dtype: bfloat16 scores would be off by up to 1 part in 256, and their
    # exponentials by more.
    scores = jnp.einsum("BNTH,BNSH->BNTS", q_BNTH, k_BNSH, preferred_element_type=jnp.float32)
    scores *= head_dim**-0.5 if scale is None else scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias_BNTS is not None:
        scores += bias_BNTS
    # Not -inf, which would give NaN for a query whose keys are all masked.
    scores = jnp.where(allowed[:, None], scores, jnp.finfo(jnp.float32).min)
    if sink_N is None:
        return jax.nn.softmax(scores)
    sinks = jnp.broadcast_to(sink_N[:, None, None], (*scores.shape[:3], 1))
    # The sink takes part of the softmax and has no value, so its weight is left out.
    return jax.nn.softmax(jnp.concatenate([scores, sinks], axis=-1))[..., :-1]


@configclass
class BlockedKernel(Kernel):
    """Blocks of queries, each against only the keys that the mask can allow: causal attention costs half.

    With a KV cache all queries of a call form one block.
    """

    holds_weights = mixed_sizes = True

    block: int = 128
    """Queries per block."""

    def __post_init__(self):
        check_positive(block=self.block)

    def attend(self, q_BNTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, pairs: Pairs) -> jax.Array:
        """[B, N, T, H]."""
        if pairs.slots is not None:
            return _attend_part(q_BNTH, k_BKSH, v_BKSH, pairs, WHOLE, WHOLE)
        length = q_BNTH.shape[2]
        # A Python loop and not a scan: every block has another number of keys, and so another shape.
        rows = [slice(start, min(start + self.block, length)) for start in range(0, length, self.block)]
        blocks = [_attend_part(q_BNTH, k_BKSH, v_BKSH, pairs, part, pairs.columns(part)) for part in rows]
        return jnp.concatenate(blocks, axis=2)


@configclass
class ChunkedKernel(Kernel):
    """Blocks of queries against blocks of keys in a loop: memory grows with T + S, forward and backward (Rabe and
    Staats 2021, arXiv:2112.05682). Fully masked blocks are skipped, so causal attention costs half and windowed
    attention costs its window. For sequences whose scores do not fit in memory."""

    mixed_sizes = True

    block: int = 512
    """Queries, and keys, per block. Memory grows with its square. A window costs its width and up to two blocks."""

    def __post_init__(self):
        check_positive(block=self.block)

    def attend(self, q_BNTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, pairs: Pairs) -> jax.Array:
        """[B, N, T, H]."""
        return chunked.attend(self.block, q_BNTH, k_BKSH, v_BKSH, pairs)


@configclass
class DotProductKernel(Kernel):
    """jax.nn.dot_product_attention: cuDNN's flash attention on GPUs, XLA's fusion of the plain formula elsewhere.

    For unpacked sequences without padding, cuDNN skips masked blocks and its memory is linear. With padding, packing or
    a KV cache it receives the mask as an array over all pairs.
    """

    implementation: Literal["cudnn", "xla"] | None = None
    """None: cudnn on GPUs, xla elsewhere."""

    def __post_init__(self):
        if self.implementation is not None:
            check_one_of("implementation", self.implementation, ("cudnn", "xla"))

    def check(self, scores: ScoresConfig) -> None:
        """Soft caps and sinks are not supported.

        Raises:
          ValueError: with a soft cap or sinks.
        """
        _check_no_sinks(self, scores)
        check(
            scores.softcap is None,
            f"scores.softcap is {scores.softcap} and kernel DotProductKernel: jax.nn.dot_product_attention cannot cap "
            "scores; set kernel to ChunkedKernel, BlockedKernel or TokamaxKernel, or softcap to None",
        )

    def attend(self, q_BNTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, pairs: Pairs) -> jax.Array:
        """[B, N, T, H].

        Raises:
          ValueError: if cudnn is used and the arrays are not bfloat16.
        """
        implementation = self.implementation or ("cudnn" if jax.default_backend() == "gpu" else "xla")
        check(
            implementation == "xla" or q_BNTH.dtype == jnp.bfloat16,
            f"activations are {q_BNTH.dtype} and kernel DotProductKernel uses cudnn, which requires bfloat16: set "
            "Precision.compute to bfloat16, or the kernel's implementation to xla",
        )
        function = functools.partial(jax.nn.dot_product_attention, implementation=implementation)
        return fused.attend(function, q_BNTH, k_BKSH, v_BKSH, pairs)


@configclass
class TokamaxKernel(Kernel):
    """tokamax.dot_product_attention: Pallas kernels for GPUs and TPUs, and an XLA implementation where those do not
    apply (github.com/openxla/tokamax). With padding, packing or a KV cache the mask is an array over all pairs."""

    implementation: Literal["mosaic", "triton", "cudnn", "xla", "xla_chunked"] | None = None
    """None: the first that tokamax finds applicable."""

    def __post_init__(self):
        if self.implementation is not None:
            known = ("mosaic", "triton", "cudnn", "xla", "xla_chunked")
            check_one_of("implementation", self.implementation, known)

    def check(self, scores: ScoresConfig) -> None:
        """tokamax caps the sum of score and bias, whereas the published models cap before the bias; it has no sinks.

        Raises:
          ValueError: with both a soft cap and a bias, or with sinks.
        """
        _check_no_sinks(self, scores)
        check(
            scores.softcap is None or scores.bias is None,
            f"scores.softcap is {scores.softcap}, scores.bias {scores.bias} and kernel TokamaxKernel: tokamax adds "
            "the bias before the softcap, this package after it; set kernel to ChunkedKernel or BlockedKernel",
        )

    def attend(self, q_BNTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, pairs: Pairs) -> jax.Array:
        """[B, N, T, H].

        Raises:
          ValueError: if tokamax is not installed.
        """
        given = {"implementation": self.implementation, "logits_soft_cap": pairs.scores.softcap}
        function = functools.partial(fused.tokamax_attention(), **given)
        return fused.attend(function, q_BNTH, k_BKSH, v_BKSH, pairs)


@configclass
class SplashKernel(Kernel):
    """jax's splash attention, a Pallas kernel for TPUs: linear memory, forward and backward, also for packed sequences;
    fully masked blocks are skipped (jax.experimental.pallas.ops.tpu.splash_attention).

    With a KV cache, or for lengths that are not a multiple of 128, it runs BlockedKernel. It runs on TPUs only.
    """

    block: int = 512
    """Queries, and keys, per block."""

    def __post_init__(self):
        check(
            self.block > 0 and self.block % splash.LANES == 0,
            f"block is {self.block}: splash attention requires a multiple of {splash.LANES}",
        )

    def check(self, scores: ScoresConfig) -> None:
        """Biases and sinks are not supported.

        Raises:
          ValueError: with a bias or sinks.
        """
        _check_no_sinks(self, scores)
        check(
            scores.bias is None,
            f"scores.bias is {scores.bias} and kernel SplashKernel, which supports no bias: set kernel to "
            "ChunkedKernel or BlockedKernel",
        )

    def attend(self, q_BNTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, pairs: Pairs) -> jax.Array:
        """[B, N, T, H].

        Raises:
          ValueError: for the mask Permuted.
        """
        if pairs.slots is not None or q_BNTH.shape[2] % splash.LANES:
            return BlockedKernel().attend(q_BNTH, k_BKSH, v_BKSH, pairs)
        return splash.attend(self.block, q_BNTH, k_BKSH, v_BKSH, pairs)


def check_dropout(kernel: Kernel, rate: float) -> None:
    """Checks the dropout rate of attention weights.

    Raises:
      ValueError: if `rate` is not in [0, 1), or for dropout with a kernel that does not materialise the weights.
    """
    check(0 <= rate < 1, f"dropout is {rate}: it must be at least 0 and less than 1")
    check(
        rate == 0 or kernel.holds_weights,
        f"dropout is {rate} and kernel {type(kernel).__name__}, which does not materialise attention weights: set "
        "kernel to BlockedKernel or PlainKernel, or dropout to 0",
    )


def _check_no_sinks(kernel: Kernel, scores: ScoresConfig) -> None:
    check(
        not scores.sinks,
        f"scores.sinks is True and kernel {type(kernel).__name__}, which does not support attention sinks: set kernel "
        "to ChunkedKernel, BlockedKernel or PlainKernel",
    )


def _attend_part(
    q_BNTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, pairs: Pairs, rows: slice, columns: slice
) -> jax.Array:
    """Output of the queries `rows` over the keys `columns`."""
    q_BNTH, k_BKSH, v_BKSH = q_BNTH[:, :, rows], k_BKSH[:, :, columns], v_BKSH[:, :, columns]
    allowed, bias = pairs.allowed(rows, columns), pairs.bias(q_BNTH.shape[1], rows, columns)
    kept, rate = None, 0.0
    if pairs.drop is not None:
        shape, rate = (*q_BNTH.shape[:3], k_BKSH.shape[2]), pairs.drop.rate
        kept = pairs.drop.kept(shape, rows.start or 0)
    scores = pairs.scores
    return attend(q_BNTH, k_BKSH, v_BKSH, allowed, bias, pairs.sink_N, scores.scale, scores.softcap, kept, rate)

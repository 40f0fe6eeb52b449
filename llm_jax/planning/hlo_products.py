"""FLOPs of matrix products: of `dot`, of `convolution`, to which the compiler converts products on TPUs, and of library
calls on GPUs (cuBLAS, cuDNN; XLA's service/gpu/cublas_cudnn.h) and CPUs (oneDNN).

A multiply-add counts as two FLOPs. Products of a convolution with padding, or with the gaps of dilated inputs, do not
count. This matters because a product with a batch axis becomes a convolution in which most taps read padding.
"""

import functools
import math
import re
from collections.abc import Sequence

from llm_jax.planning.hlo import Array, Operation

OPCODES = ("dot", "convolution")
_BLAS = ("__cublas$gemm", "__cublas$lt$matmul", "__cublas$lt$matmul$f8")
_ONEDNN = "__onednn$matmul"
_CONVOLUTIONS = {
    "__cudnn$convForward": ("left", "right", "result"),
    "__cudnn$convForwardGraph": ("left", "right", "result"),
    "__cudnn$convBiasActivationForward": ("left", "right", "result"),
    "__cudnn$convBackwardInput": ("result", "right", "left"),
    "__cudnn$convBackwardFilter": ("left", "result", "right"),
}
"""The arrays of the call that are data, kernel and result of its forward convolution. The `window` and `dim_labels` of
the call are those of the forward convolution."""


def flops(operation: Operation, left: Array, right: Array) -> int:
    """FLOPs of a dot or convolution of `left` and `right`.

    Raises:
      ValueError: if a convolution has no `dim_labels`.
    """
    if operation.opcode == "dot":
        contracted = math.prod(left.shape[axis] for axis in operation.integers("lhs_contracting_dims"))
        return 2 * math.prod(operation.arrays[0].shape) * contracted
    return _convolution(operation, left, right, operation.arrays[0])


def library_flops(target: str | None, operation: Operation, operands: Sequence[tuple[Array, ...]]) -> int | None:
    """FLOPs of a custom call of a library's matrix product; None for other calls, or without a description of the
    product.

    Args:
      target: name of the called function.
      operands: arrays of each operand.
    """
    if target not in (*_BLAS, _ONEDNN, *_CONVOLUTIONS):
        return None
    (left,), (right,) = operands[:2]
    result = operation.arrays[0]  # workspace may follow it
    if target in _CONVOLUTIONS:
        arrays = {"left": left, "right": right, "result": result}
        return _convolution(operation, *(arrays[role] for role in _CONVOLUTIONS[target]))
    if target == _ONEDNN:
        # left is [..., M, K] or its transpose, result [..., M, N].
        return 2 * math.prod(left.shape) * result.shape[-1]
    axes = operation.attribute(r'lhs_contracting_dimensions\\?":\[([^\]]*)\]')
    if axes is None:
        return None
    return 2 * math.prod(result.shape) * math.prod(left.shape[int(axis)] for axis in re.findall(r"\d+", axes))


def _convolution(operation: Operation, *arrays: Array) -> int:
    """FLOPs from the arrays of data, kernel and result."""
    labels = operation.attribute(r"dim_labels=(\w+_\w+->\w+)")
    if labels is None:
        raise ValueError(f"convolution {operation.name} has no dim_labels: the complete HLO text is required")
    data, kernel, result = (
        dict(zip(words, array.shape, strict=True))
        for words, array in zip(re.split("_|->", labels), arrays, strict=True)
    )
    # The kernel's 'i' is already the inputs of one feature group, and the result's 'b' the batch of one batch group.
    pairs = result["b"] * result["f"] * kernel["i"]
    window = _window(operation, len(data) - 2)
    for number, (stride, (low, _), spread, dilation) in enumerate(window):
        axis = str(number)
        pairs *= _meetings(data[axis], kernel[axis], result[axis], stride, low, spread, dilation)
    return 2 * pairs


def _window(operation: Operation, axes: int) -> list[tuple[int, tuple[int, int], int, int]]:
    """(stride, padding, dilation of the data, dilation of the kernel) of each spatial axis."""
    text = operation.attribute(r", window=\{([^}]*)\}") or ""
    fields = dict(field.split("=") for field in text.split())
    stride, spread, dilation = (
        [int(number) for number in fields[key].split("x")] if key in fields else [1] * axes
        for key in ("stride", "lhs_dilate", "rhs_dilate")
    )
    pads = fields["pad"].split("x") if "pad" in fields else ["0_0"] * axes
    stacks = [pad.partition("_") for pad in pads]
    padding = [(int(low), int(high)) for low, _, high in stacks]
    return list(zip(stride, padding, spread, dilation, strict=True))


@functools.lru_cache(maxsize=4096)
def _meetings(data: int, kernel: int, result: int, stride: int, low: int, spread: int, dilation: int) -> int:
    """Number of pairs (index in the result, tap of the kernel) that read data on one spatial axis.

    Index o and tap k read o * stride + k * dilation - low. Data is at every multiple of `spread`.
    """
    period = spread // math.gcd(stride, spread)
    count = 0
    for tap in range(kernel):
        shift = tap * dilation - low
        first = max(0, -(shift // stride))
        last = min(result - 1, ((data - 1) * spread - shift) // stride)
        # Indices that read data, if any, recur with `period`.
        hits = (place for place in range(first, first + period) if (place * stride + shift) % spread == 0)
        found = next(hits, last + 1)
        count += len(range(found, last + 1, period))
    return count

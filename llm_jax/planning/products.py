"""FLOPs of matrix products: of `dot`, and of `convolution`, which products become for TPUs.

A multiply-add counts as two, and only those on data: what a convolution multiplies with its padding or between its
dilated inputs is no work. That matters, for a product with a batch axis becomes a convolution most of whose taps meet
padding.
"""

import functools
import math
import re

from llm_jax.core.checks import check
from llm_jax.planning.hlo import Array, Operation

OPCODES = ("dot", "convolution")


def flops(operation: Operation, left: Array, right: Array) -> int:
    """FLOPs of a dot or convolution of `left` and `right`.

    Raises:
      ValueError: for a convolution without `dim_labels`.
    """
    if operation.opcode == "dot":
        contracted = math.prod(left.shape[axis] for axis in operation.integers("lhs_contracting_dims"))
        return 2 * math.prod(operation.arrays[0].shape) * contracted
    return _convolution(operation, left, right)


def _convolution(operation: Operation, left: Array, right: Array) -> int:
    labels = operation.attribute(r"dim_labels=(\w+_\w+->\w+)")
    check(labels is not None, f"convolution {operation.name} has no dim_labels: the HLO text must be whole")
    data, kernel, result = (
        dict(zip(words, array.shape, strict=True))
        for words, array in zip(re.split("_|->", labels), (left, right, operation.arrays[0]), strict=True)
    )
    # The kernel's 'i' is already the inputs of one feature group; the result's 'b' the rows of one batch group.
    pairs = result["b"] * result["f"] * kernel["i"]
    window = _window(operation, len(data) - 2)
    for number, (stride, (low, _), spread, dilation) in enumerate(window):
        axis = str(number)
        pairs *= _meetings(data[axis], kernel[axis], result[axis], stride, low, spread, dilation)
    return 2 * pairs


def _window(operation: Operation, axes: int) -> list[tuple[int, tuple[int, int], int, int]]:
    """(stride, padding, spread of the data, spread of the kernel) of each spatial axis."""
    text = operation.attribute(r", window=\{([^}]*)\}") or ""
    fields = dict(field.split("=") for field in text.split())
    stride, spread, dilation = (
        [int(number) for number in fields[key].split("x")] if key in fields else [1] * axes
        for key in ("stride", "lhs_dilate", "rhs_dilate")
    )
    pads = fields["pad"].split("x") if "pad" in fields else ["0_0"] * axes
    padding = [tuple(int(side) for side in pad.split("_")) for pad in pads]
    return list(zip(stride, padding, spread, dilation, strict=True))


@functools.lru_cache(maxsize=4096)
def _meetings(data: int, kernel: int, result: int, stride: int, low: int, spread: int, dilation: int) -> int:
    """Pairs (place in the result, tap of the kernel) that meet data on one spatial axis.

    Place o and tap k look at o * stride + k * dilation - low, where data stands at every `spread`-th number.
    """
    period = spread // math.gcd(stride, spread)
    count = 0
    for tap in range(kernel):
        shift = tap * dilation - low
        first = max(0, -(shift // stride))
        last = min(result - 1, ((data - 1) * spread - shift) // stride)
        # Those that fall on data recur with `period`, if there is one at all.
        hits = (place for place in range(first, first + period) if (place * stride + shift) % spread == 0)
        found = next(hits, last + 1)
        count += len(range(found, last + 1, period))
    return count

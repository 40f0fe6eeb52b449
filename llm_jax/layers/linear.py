"""Linear layers. They create every matrix of every model, with its shape, logical axes, initialiser and dtype.

Legend: B batch, T query length, D model width, N heads or blocks, H head or block size, M as H, C = N H features,
F ffn width, V vocabulary, E experts.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm_jax.core.dtypes import Precision
from llm_jax.layers.broadcast import broadcast
from llm_jax.layers.derivative import custom_vjp
from llm_jax.layers.initialisers import Init, Zero, annotated
from llm_jax.layers.products import over_rows
from llm_jax.layers.roles import Role
from llm_jax.sharding import axes, partition
from llm_jax.sharding.platforms import by_platform


class LinearLayer(nn.Module):
    """y = einsum(x, kernel) + bias.

    Attributes:
      einsum: 'x,kernel->y' in the letters of the legend, such as 'BTD,DNH->BNTH'. The kernel's contracted letters
        come first.
      shape: kernel shape.
      axes: logical axis of each kernel axis.
      kernel_init: initialiser of the kernel.
      bias: whether there is a bias; its shape is that of the kernel's output letters.
      bias_init: initialiser of the bias, by the kernel's fan-in and fan-out.
      role: role of the kernel; that of the bias is `Role.BIAS`.
      exact: whether float32 products have full precision on accelerators, which otherwise round their operands.
      copies: number of adjacent repetitions of each entry of the kernel's first output axis in the result. The
        parameters are not repeated: devices that share an entry compute one copy each.
    """

    einsum: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    kernel_init: Init
    precision: Precision
    bias: bool = False
    bias_init: Init = Zero()
    role: Role = Role.MATRIX
    exact: bool = False
    copies: int = 1

    def setup(self):
        _, kernel_letters, outputs = _letters(self.einsum)
        # The contracted letters come first, so their number splits the kernel's axes into inputs and outputs.
        contracted = self.contracted = sum(letter not in outputs for letter in kernel_letters)
        fans = math.prod(self.shape[:contracted]), math.prod(self.shape[contracted:])
        init = annotated(self.kernel_init.draw(*fans), self.axes, self.role)
        self.kernel = self.param("kernel", init, self.shape, self.precision.param_dtype)
        if self.bias:
            init = annotated(self.bias_init.draw(*fans), self.axes[contracted:], Role.BIAS)
            self.offset = self.param("bias", init, self.shape[contracted:], self.precision.param_dtype)
            self.offset_letters = kernel_letters[contracted:]

    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = self.precision.dtype
        kernel = self._repeated(self.kernel.astype(dtype), self.axes)
        y = contract(self.einsum, x.astype(dtype), kernel, "highest" if self.exact else None)
        # Named before the bias: the remat policy `dots` saves this array, and the bias is cheap to add again.
        y = checkpoint_name(y, "product")
        if self.bias:
            offset = self._repeated(self.offset, self.axes[self.contracted :])
            offset = _align(offset, self.offset_letters, _letters(self.einsum)[2])
            y += broadcast(offset, y.shape, dtype)
        return y

    def _repeated(self, parameter: jax.Array, logical_axes: tuple[str, ...]) -> jax.Array:
        if self.copies == 1:
            return parameter
        # The first output axis, which is the heads of keys or values. The constraint shards the copies, so that every
        # device computes its own.
        axis = logical_axes.index(self.axes[self.contracted])
        return partition.constrain(jnp.repeat(parameter, self.copies, axis=axis), *logical_axes)

    def product(self, einsum: str, x: jax.Array) -> jax.Array:
        """einsum(x, kernel) without the bias and with another einsum than the layer's, such as the transposed map."""
        dtype = self.precision.dtype
        return jnp.einsum(einsum, x.astype(dtype), self.kernel.astype(dtype))


class BlockDiagonal(nn.Module):
    """y [B, T, C] = x [B, T, C] @ kernel + bias with a block-diagonal kernel: each of N groups of H consecutive
    features has its own linear map.

    Attributes:
      blocks: N.
      features: C, a multiple of N.
      kernel_init: initialiser of the blocks, with fan-in H; the bias starts at zero.
    """

    blocks: int
    features: int
    kernel_init: Init
    precision: Precision

    @nn.compact
    def __call__(self, x_BTC: jax.Array) -> jax.Array:
        # Blocks have a logical axis of their own. With that of heads, optimizers that read axes (Muon, Adafactor) would
        # treat all blocks as one matrix from N blocks to H * M features, which is no linear map.
        size, dtype, logical_axes = self.features // self.blocks, self.precision.dtype, (axes.BLOCKS, axes.HEAD_DIM)
        init = self.kernel_init.draw(size, size)
        kernel_NHM = self.param(
            "kernel",
            annotated(init, (*logical_axes, axes.HEAD_DIM), Role.MATRIX),
            (self.blocks, size, size),
            self.precision.param_dtype,
        )
        bias_NM = self.param(
            "bias",
            annotated(nn.initializers.zeros_init(), logical_axes, Role.BIAS),
            (self.blocks, size),
            self.precision.param_dtype,
        )
        x_BTNH = x_BTC.astype(dtype).reshape(*x_BTC.shape[:2], self.blocks, size)
        y_BTNM = jnp.einsum("BTNH,NHM->BTNM", x_BTNH, kernel_NHM.astype(dtype))
        return (y_BTNM + broadcast(bias_NM, y_BTNM.shape, dtype)).reshape(x_BTC.shape)


class StackedLinear(nn.Module):
    """() -> kernel [E, D, F] in the compute dtype and bias [E, F] in the parameter dtype, or None, of E linear maps.
    The caller computes the products and adds the biases.

    Attributes:
      axes: logical axis of each kernel axis.
      kernel_init: initialiser of every kernel, with fan-in D; the biases start at zero.
    """

    shape: tuple[int, int, int]
    axes: tuple[str, str, str]
    kernel_init: Init
    precision: Precision
    bias: bool = False

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array | None]:
        (count, inputs, outputs), (number, _, feature) = self.shape, self.axes
        init = annotated(self.kernel_init.draw(inputs, outputs), self.axes, Role.EXPERT)
        kernel_EDF = self.param("kernel", init, self.shape, self.precision.param_dtype).astype(self.precision.dtype)
        if not self.bias:
            return kernel_EDF, None
        zeros = annotated(nn.initializers.zeros_init(), (number, feature), Role.BIAS)
        bias_EF = self.param("bias", zeros, (count, outputs), self.precision.param_dtype)
        return kernel_EDF, bias_EF


def contract(einsum: str, x: jax.Array, kernel: jax.Array, precision: str | None = None) -> jax.Array:
    """einsum(x, kernel), with the precision of `jax.default_matmul_precision` unless one is given.

    On TPUs it and its gradients are einsums, whose operand and result layouts the compiler chooses. Elsewhere they are
    products of two matrices: the gradient of a kernel of 'BTD,DF->BTF' contracts two axes at once, which CPU matrix
    libraries compute at a third of the speed of the flat product. If the sequence axis is sharded, flattening would
    require an all-gather, so they are einsums there too.
    """
    # The numbers of shards are read here and passed as constants: the backward pass is traced later, perhaps outside
    # the context of the active layout.
    return _contract(einsum, (partition.parts(axes.BATCH), partition.parts(axes.LENGTH)), precision, x, kernel)


# A derivative of its own, whose residuals are the operands. Autodiff would save the reshaped kernel, of which a scan
# over layers would store a copy for every layer.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _contract(einsum: str, parts: tuple[int, int], precision: str | None, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`parts`: number of shards of the batch and of the sequence."""
    return _formulated(lambda product: functools.partial(product, einsum, precision=precision), parts, x, kernel)


def _contract_forward(einsum, parts, precision, x, kernel):
    return _contract(einsum, parts, precision, x, kernel), (x, kernel)


def _contract_backward(einsum, parts, precision, operands, dy):
    def gradients(product):
        of = functools.partial(product, einsum, precision=precision)
        return lambda x, kernel, dy: jax.vjp(of, x, kernel)[1](dy)

    return _formulated(gradients, parts, *operands, dy)


_contract.defvjp(_contract_forward, _contract_backward)


def _formulated(of: Callable[[Callable], Callable], parts: tuple[int, int], *operands: jax.Array) -> Any:
    """The result of `of(product)` for the operands, with the product of the platform."""
    elsewhere = functools.partial(_divided, dict(zip("BT", parts, strict=True))) if parts[1] > 1 else _flat
    return by_platform(*operands, tpu=of(jnp.einsum), default=of(elsewhere))


def _divided(parts: dict[str, int], einsum: str, x: jax.Array, kernel: jax.Array, precision: str | None) -> jax.Array:
    """einsum(x, kernel) with a copy of the kernel for each shard of the tokens, so that its gradients are summed over
    all devices at once. With a single kernel, XLA on CPUs sums over the devices of a sequence, then over those of the
    batch."""
    inputs, kernel_letters, outputs = _letters(einsum)
    sizes = dict(zip(inputs, x.shape, strict=True)) | dict(zip(kernel_letters, kernel.shape, strict=True))
    if any(sizes.get(letter, 1) % count for letter, count in parts.items()):
        # A sequence of a single token is not sharded.
        return jnp.einsum(einsum, x, kernel, precision=precision)
    # Each shard of the tokens multiplies its own copy. The gradient of this broadcast is the single sum over all of
    # them.
    copies = jnp.broadcast_to(kernel, (math.prod(parts.values()), *kernel.shape))
    copies = copies.reshape(*parts.values(), *kernel.shape)
    cut = [
        size
        for letter in inputs
        for size in ((parts[letter], sizes[letter] // parts[letter]) if letter in parts else (sizes[letter],))
    ]
    # 'BTD,DF->BTF' becomes 'bBtTD,btDF->bBtTF': b and t number the shards, B and T the tokens within a shard.
    inner = "->".join(letters.replace("B", "bB").replace("T", "tT") for letters in (inputs, outputs))
    inner = inner.replace("->", f",bt{kernel_letters}->")
    y = jnp.einsum(inner, x.reshape(cut), copies, precision=precision)
    return y.reshape([sizes[letter] for letter in outputs])


def _flat(einsum: str, x: jax.Array, kernel: jax.Array, precision: str | None) -> jax.Array:
    """einsum(x, kernel) as one product of two matrices."""
    inputs, kernel_letters, outputs = _letters(einsum)
    contracted = [letter for letter in kernel_letters if letter not in outputs]
    batch = [letter for letter in inputs if letter not in contracted]
    sizes = dict(zip(inputs, x.shape, strict=True)) | dict(zip(kernel_letters, kernel.shape, strict=True))
    produced = kernel_letters[len(contracted) :]
    order = [inputs.index(letter) for letter in (*batch, *contracted)]
    depth = math.prod(sizes[letter] for letter in contracted)
    # [tokens, contracted features] @ [contracted features, outputs] -> [tokens, outputs]
    x = x.transpose(order).reshape(-1, depth)
    y = _product(precision, x, kernel.reshape(depth, -1))
    natural = [*batch, *produced]
    y = y.reshape([sizes[letter] for letter in natural])
    return y.transpose([natural.index(letter) for letter in outputs])


@custom_vjp(0)
def _product(precision: str | None, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [R, D] @ kernel [D, F]."""
    return jnp.matmul(x, kernel, precision=precision)


def _product_backward(precision, operands, dy):
    x, kernel = operands
    # The gradient of the kernel contracts the rows of both operands, which is slow on CPUs as a plain product: see
    # products.py.
    return jnp.matmul(dy, kernel.T, precision=precision), over_rows(x, dy, precision)


_product.defvjp(lambda precision, x, kernel: (_product(precision, x, kernel), (x, kernel)), _product_backward)


def _letters(einsum: str) -> tuple[str, str, str]:
    operands, outputs = einsum.split("->")
    inputs, kernel = operands.split(",")
    return inputs, kernel, outputs


def _align(bias: jax.Array, letters: str, outputs: str) -> jax.Array:
    """Reshapes a bias over `letters` so that it broadcasts against an array over `outputs`."""
    order = sorted(range(len(letters)), key=lambda index: outputs.index(letters[index]))
    shape = [bias.shape[letters.index(letter)] if letter in letters else 1 for letter in outputs]
    return jnp.transpose(bias, order).reshape(shape)

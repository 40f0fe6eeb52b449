"""Depthwise causal convolution along a sequence: each channel is a weighted sum of its own last `taps` values.

Legend: B batch, T length, C channels, W taps, P earlier inputs that a tap may reach (W - 1), S earlier and new inputs.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.core.checks import check_positive
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.broadcast import broadcast
from llm_jax.layers.initialisers import FanIn, Init, Zero, annotated
from llm_jax.layers.recurrent.document_starts import segment_ids
from llm_jax.layers.roles import Role
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.sharding import axes


@flax.struct.dataclass
class Recent:
    """The last inputs of every sequence without padding, the latest at the end.

    Attributes:
      x_BPC: the inputs.
      segment_ids_BP: int32, their segment ids; 0 where a sequence has had fewer inputs.
    """

    x_BPC: jax.Array
    segment_ids_BP: jax.Array


@configclass
class ConvolutionConfig:
    """y_t = bias + sum over j < taps of kernel[taps - 1 - j] x_(t-j), within a document, with zeros before its
    start."""

    taps: int = 4
    bias: bool = True
    init: Init = FanIn()
    """Initialiser of the kernel. Its fan-in and its fan-out are the number of taps."""
    bias_init: Init = Zero()

    def __post_init__(self):
        check_positive(taps=self.taps)

    def build(self, channels: int, precision: Precision, name: str) -> "Convolution":
        return Convolution(self, channels, precision, name=name)

    def parameters(self, channels: int) -> int:
        return channels * (self.taps + self.bias)

    def allocate(self, batch: int, channels: int, dtype: jnp.dtype) -> Recent:
        """An empty state."""
        before = self.taps - 1
        return Recent(jnp.zeros((batch, before, channels), dtype), jnp.zeros((batch, before), jnp.int32))


class Convolution(nn.Module):
    """x [B, T, C] -> [B, T, C] in the compute dtype.

    Without a state, padding may occur between documents but not within one. With a state it may occur anywhere.
    """

    config: ConvolutionConfig
    channels: int
    precision: Precision

    @nn.compact
    def __call__(
        self, x_BTC: jax.Array, sequence: SequenceInfo, state: Recent | None = None
    ) -> tuple[jax.Array, Recent | None]:
        """Convolves. `state` holds the last inputs of earlier calls, which this call continues."""
        x_BTC = x_BTC.astype(self.precision.dtype)
        taps = self.config.taps
        kernel_WC = self._parameter("kernel", self.config.init.draw(taps, taps), (taps,), Role.CONVOLUTION)
        kernel_WC = kernel_WC.astype(self.precision.dtype)
        if state is None:
            y_BTC = convolve(x_BTC, kernel_WC, sequence.segment_ids_BT)
        else:
            y_BTC, state = _continued(x_BTC, kernel_WC, segment_ids(sequence), state)
        if self.config.bias:
            bias_C = self._parameter("bias", self.config.bias_init.draw(taps, taps), (), Role.BIAS)
            y_BTC += broadcast(bias_C, y_BTC.shape, y_BTC.dtype)
        return y_BTC, state

    def _parameter(self, name: str, init: nn.initializers.Initializer, taps: tuple[int, ...], role: Role) -> jax.Array:
        # [taps, channels] for the kernel, [channels] for the bias.
        logical_axes = (axes.POSITIONS, axes.MLP)[-1 - len(taps) :]
        init = annotated(init, logical_axes, role)
        return self.param(name, init, (*taps, self.channels), self.precision.param_dtype)


@jax.custom_vjp
def convolve(x_BTC: jax.Array, kernel_WC: jax.Array, segment_ids_BT: jax.Array | None) -> jax.Array:
    """The convolution in the dtype of x, summed in float32. `segment_ids_BT` None: each sequence is one document.

    It is a sum of shifted sequences, which reads memory once for few taps; a library's grouped convolution runs channel
    by channel. The backward pass has the same form and saves x only, not a copy for each tap.
    """
    return _convolve(x_BTC, kernel_WC, segment_ids_BT)[0]


def _convolve(x_BTC, kernel_WC, segment_ids_BT):
    y_BTC = jnp.zeros(x_BTC.shape, jnp.float32)
    for back, tap_C in enumerate(reversed(kernel_WC)):
        y_BTC += _within(_later(x_BTC, back), segment_ids_BT, back) * tap_C.astype(jnp.float32)
    return y_BTC.astype(x_BTC.dtype), (x_BTC, kernel_WC, segment_ids_BT)


def _convolve_backward(residuals, dy_BTC):
    x_BTC, kernel_WC, segment_ids_BT = residuals
    dx_BTC, dkernel = jnp.zeros(x_BTC.shape, jnp.float32), []
    for back, tap_C in enumerate(reversed(kernel_WC)):
        reached_BTC = _within(dy_BTC, segment_ids_BT, back)
        # Tap `back` carried x_(t - back) to y_t, so dy_t returns to t - back unless the two belong to different
        # documents.
        dx_BTC += _earlier(reached_BTC, back) * tap_C.astype(jnp.float32)
        dkernel.append(jnp.sum(reached_BTC * _later(x_BTC, back).astype(jnp.float32), axis=(0, 1)))
    return dx_BTC.astype(x_BTC.dtype), jnp.stack(dkernel[::-1]).astype(kernel_WC.dtype), None


convolve.defvjp(_convolve, _convolve_backward)


def _within(x_BTC: jax.Array, segment_ids_BT: jax.Array | None, back: int) -> jax.Array:
    """x in float32, with zeros where the token `back` positions earlier belongs to another document."""
    x_BTC = x_BTC.astype(jnp.float32)
    if segment_ids_BT is None or back == 0:
        return x_BTC
    same_BT = segment_ids_BT == _later(segment_ids_BT, back)
    return jnp.where(same_BT[:, :, None], x_BTC, 0)


def _continued(
    x_BTC: jax.Array, kernel_WC: jax.Array, segment_ids_BT: jax.Array, state: Recent
) -> tuple[jax.Array, Recent]:
    """The convolution of sequences that continue `state`, and the state after them.

    Padding is moved to the front, so that the inputs of a document are adjacent.
    """
    before = len(kernel_WC) - 1
    x_BSC = jnp.concatenate([state.x_BPC.astype(x_BTC.dtype), x_BTC], axis=1)
    segments_BS = jnp.concatenate([state.segment_ids_BP, segment_ids_BT], axis=1)
    # A stable sort by "is real": padding first, real inputs in their order after it.
    order_BS = jnp.argsort(segments_BS != 0, axis=1, stable=True)
    x_BSC = jnp.take_along_axis(x_BSC, order_BS[:, :, None], axis=1)
    segments_BS = jnp.take_along_axis(segments_BS, order_BS, axis=1)
    y_BSC = convolve(x_BSC, kernel_WC, segments_BS)
    # The inverse permutation, for the new inputs only.
    place_BT = jnp.argsort(order_BS, axis=1)[:, before:]
    last = slice(x_BSC.shape[1] - before, None)
    # Padding is in front, so the last entries are the latest real inputs.
    state = Recent(x_BSC[:, last].astype(state.x_BPC.dtype), segments_BS[:, last])
    return jnp.take_along_axis(y_BSC, place_BT[:, :, None], axis=1), state


def _later(x: jax.Array, shift: int) -> jax.Array:
    """x [B, T, ...] shifted to later positions by `shift`, with zeros in front."""
    return jnp.pad(x, [(0, 0), (shift, 0), *[(0, 0)] * (x.ndim - 2)])[:, : x.shape[1]]


def _earlier(x_BTC: jax.Array, shift: int) -> jax.Array:
    """x shifted to earlier positions by `shift`, with zeros at the end."""
    return jnp.pad(x_BTC, [(0, 0), (0, shift), (0, 0)])[:, shift:]

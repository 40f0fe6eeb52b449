"""Depthwise causal convolution along a row: each channel a weighted sum of its own last few values.

Legend: B batch, T length, C channels, W taps, P earlier inputs that a tap may reach (W - 1), S earlier and new inputs.
"""

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.core.checks import check_positive
from llm_jax.core.dtypes import Precision
from llm_jax.layers.linear import FanIn, Init
from llm_jax.layers.mixers.documents import segment_ids
from llm_jax.layers.mixers.masks import Placement
from llm_jax.sharding import axes


@flax.struct.dataclass
class Recent:
    """The last inputs of every row that were no padding, the latest at the end.

    Attributes:
      x_BPC: the inputs.
      segment_ids_BP: int32, their documents; 0 where a row has not had so many.
    """

    x_BPC: jax.Array
    segment_ids_BP: jax.Array


@dataclasses.dataclass(frozen=True)
class ConvolutionConfig:
    """y_t = bias + sum over j < taps of kernel[taps - 1 - j] x_(t-j), within a document; before it stand zeros."""

    taps: int = 4
    bias: bool = True
    init: Init = FanIn()
    """Of the kernel; its fan-in is the number of taps."""

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
    """x [B, T, C] -> [B, T, C] in the compute type.

    Without a state padding may stand before and after documents, not within one; with a state anywhere.
    """

    config: ConvolutionConfig
    channels: int
    precision: Precision

    @nn.compact
    def __call__(
        self, x_BTC: jax.Array, place: Placement, state: Recent | None = None
    ) -> tuple[jax.Array, Recent | None]:
        """Convolves; `state` holds the inputs of earlier calls, which the tokens of this one continue."""
        x_BTC = x_BTC.astype(self.precision.dtype)
        kernel_WC = self._parameter(
            "kernel", nn.initializers.normal(self.config.init.scale(self.config.taps)), (self.config.taps,)
        )
        if state is None:
            y_BTC = convolve(x_BTC, kernel_WC, place.segment_ids_BT)
        else:
            y_BTC, state = _continued(x_BTC, kernel_WC, segment_ids(place), state)
        if self.config.bias:
            y_BTC += self._parameter("bias", nn.initializers.zeros_init(), ())
        return y_BTC, state

    def _parameter(self, name: str, init: nn.initializers.Initializer, taps: tuple[int, ...]) -> jax.Array:
        words = (axes.POSITIONS, axes.MLP)[-1 - len(taps) :]
        init = nn.with_logical_partitioning(init, words)
        parameter = self.param(name, init, (*taps, self.channels), self.precision.param_dtype)
        return parameter.astype(self.precision.dtype)


@jax.checkpoint
def convolve(x_BTC: jax.Array, kernel_WC: jax.Array, segment_ids_BT: jax.Array | None) -> jax.Array:
    """The convolution of rows, of x's type, summed in float32; `segment_ids_BT` None: each row is one document.

    A sum of shifted rows: a handful of taps is read from memory once, where a library's grouped convolution runs
    channel by channel. The backward pass keeps x alone, not a copy for each tap.
    """
    taps = len(kernel_WC)
    y_BTC = jnp.zeros(x_BTC.shape, jnp.float32)
    for back in range(taps):
        earlier_BTC = _shifted(x_BTC, back)
        if back and segment_ids_BT is not None:
            same_BT = segment_ids_BT == _shifted(segment_ids_BT, back)
            earlier_BTC = jnp.where(same_BT[:, :, None], earlier_BTC, 0)
        y_BTC += earlier_BTC.astype(jnp.float32) * kernel_WC[taps - 1 - back].astype(jnp.float32)
    return y_BTC.astype(x_BTC.dtype)


def _continued(
    x_BTC: jax.Array, kernel_WC: jax.Array, segment_ids_BT: jax.Array, state: Recent
) -> tuple[jax.Array, Recent]:
    """The convolution of rows that go on, and the state after them.

    Padding is moved before what is real, so that the inputs of a document stand side by side wherever it was.
    """
    before = len(kernel_WC) - 1
    x_BSC = jnp.concatenate([state.x_BPC.astype(x_BTC.dtype), x_BTC], axis=1)
    segments_BS = jnp.concatenate([state.segment_ids_BP, segment_ids_BT], axis=1)
    order_BS = jnp.argsort(segments_BS != 0, axis=1, stable=True)
    x_BSC = jnp.take_along_axis(x_BSC, order_BS[:, :, None], axis=1)
    segments_BS = jnp.take_along_axis(segments_BS, order_BS, axis=1)
    y_BSC = convolve(x_BSC, kernel_WC, segments_BS)
    place_BT = jnp.argsort(order_BS, axis=1)[:, before:]
    last = slice(x_BSC.shape[1] - before, None)
    state = Recent(x_BSC[:, last].astype(state.x_BPC.dtype), segments_BS[:, last])
    return jnp.take_along_axis(y_BSC, place_BT[:, :, None], axis=1), state


def _shifted(x: jax.Array, back: int) -> jax.Array:
    """[B, T, ...] with every row `back` places later, zeros before it."""
    wide = [(0, 0), (back, 0), *[(0, 0)] * (x.ndim - 2)]
    return jnp.pad(x, wide)[:, : x.shape[1]]

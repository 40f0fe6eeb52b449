"""The recurrent block of Griffin and its real-gated linear recurrent unit, RG-LRU (De et al. 2024, arXiv:2402.19427,
sections 2.3 and 2.4).

Legend: B batch, T length, D model width, R channels of the recurrence.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm_jax.core.checks import check_divides, check_one_of, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.activations import ACTIVATIONS, Activation
from llm_jax.layers.context import Context
from llm_jax.layers.initialisers import FanIn, Init, annotated
from llm_jax.layers.linear import BlockDiagonal, LinearLayer
from llm_jax.layers.mixer import Mixer
from llm_jax.layers.recurrent.convolution import ConvolutionConfig, Recent
from llm_jax.layers.recurrent.document_starts import Documents, documents
from llm_jax.layers.recurrent.linear_recurrence import linear_recurrence
from llm_jax.layers.roles import Role
from llm_jax.sharding import axes

_SHARPNESS = 8.0
"""c in a_t = a^(c r_t) (section 2.4)."""
_SLOWEST, _FASTEST = 0.999, 0.9
"""Range of the initial a^c (section 2.4)."""
_STEEPEST = 1000.0
"""Upper limit of the derivative of the square root, which is unbounded at decays near 1."""


@flax.struct.dataclass
class RGLRUState:
    """State of a recurrent block for every sequence.

    Attributes:
      h_BR: float32, h after the last real token.
      segment_ids_B: int32, the segment id of that token; 0 if there was none.
      recent: the last inputs of the convolution.
    """

    h_BR: jax.Array
    segment_ids_B: jax.Array
    recent: Recent


@configclass
class RGLRUConfig(Mixer):
    """out(activation(y(x)) * rg_lru(convolution(x(x)))) (section 2.3, figure 2c)."""

    channels: int
    """Size of the recurrence and of both branches."""
    blocks: int
    """Number of diagonal blocks of the matrices of both gates."""
    convolution: ConvolutionConfig = ConvolutionConfig()
    activation: Activation = "gelu_tanh"
    init: Init = FanIn()
    """Initialiser of the two branches and the gates."""
    out_init: Init = FanIn()
    """Initialiser of the output projection, which writes to the residual stream."""

    def __post_init__(self):
        check_positive(channels=self.channels, blocks=self.blocks)
        check_divides(self.blocks, self.channels, "blocks", "channels")
        check_one_of("activation", self.activation, ACTIVATIONS)

    def build(self, width: int, precision: Precision, name: str) -> "RGLRU":
        return RGLRU(self, width, precision, name=name)

    def parameters(self, width: int) -> int:
        """Number of parameters at model width `width`."""
        channels = self.channels
        # Two branches and the output, each with a bias; two gates of blocks with biases; the convolution; the rates.
        branches = 3 * width * channels + 2 * channels + width
        gates = 2 * channels * (channels // self.blocks + 1)
        return branches + gates + self.convolution.parameters(channels) + channels

    def matrix_flops(self, width: int) -> int:
        """Forward FLOPs per token of branches, gates and output."""
        return self.channels * (6 * width + 4 * self.channels // self.blocks)

    def mixing_flops(self, length: int) -> float:
        """0: convolution and recurrence have no matrix products."""
        return 0.0

    @property
    def causal(self) -> bool:
        """Always true."""
        return True

    @property
    def shape(self) -> str:
        """Channels, as text."""
        return f"{self.channels} recurrent channels, {self.blocks} blocks"

    def allocate(self, batch: int, slots: int, dtype: jnp.dtype) -> RGLRUState:
        """An empty state; its size does not depend on `slots`."""
        h_BR, segment_ids_B = jnp.zeros((batch, self.channels), jnp.float32), jnp.zeros(batch, jnp.int32)
        return RGLRUState(h_BR, segment_ids_B, self.convolution.allocate(batch, self.channels, dtype))


class RGLRU(nn.Module):
    """x [B, T, D] -> [B, T, D]."""

    config: RGLRUConfig
    width: int
    precision: Precision

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: Context, state: RGLRUState | None = None
    ) -> tuple[jax.Array, RGLRUState | None]:
        """Runs over the sequence. `state` is the state after earlier calls, which this call continues."""
        config, sequence = self.config, context.queries
        branch = lambda name: checkpoint_name(self._branch(name)(x_BTD), "qkv")  # noqa: E731
        gate_BTR, x_BTR = branch("gate"), branch("input")
        # One branch of figure 2c: convolution, then RG-LRU. The other, `gate`, multiplies its result.
        convolution = config.convolution.build(config.channels, self.precision, "convolution")
        x_BTR, recent = convolution(x_BTR, sequence, None if state is None else state.recent)
        row = documents(sequence, None if state is None else state.segment_ids_B)
        h_BTR = self._recurrence(x_BTR, row, None if state is None else state.h_BR)
        y_BTD = self._out()(ACTIVATIONS[config.activation](gate_BTR) * h_BTR.astype(self.precision.dtype))
        # Padding leaves h unchanged, so the last entry is that of the last real token.
        return y_BTD, None if recent is None else RGLRUState(h_BTR[:, -1], row.last_B, recent)

    def _recurrence(self, x_BTR: jax.Array, row: Documents, before_BR: jax.Array | None) -> jax.Array:
        """h [B, T, R] float32."""
        config = self.config
        gates = [
            BlockDiagonal(config.blocks, config.channels, config.init, self.precision, name=name)(x_BTR)
            for name in ("input_gate", "decay_gate")
        ]
        init = annotated(_slow, (axes.MLP,), Role.RATE)
        rate_R = self.param("decay", init, (config.channels,), self.precision.param_dtype)
        if before_BR is None:
            before_BR = jnp.zeros((len(x_BTR), config.channels), jnp.float32)
        decay_BTR, input_BTR = _terms(x_BTR, *gates, rate_R, row)
        return linear_recurrence(decay_BTR, input_BTR, before_BR)

    def _branch(self, name: str) -> LinearLayer:
        shape, logical_axes = (self.width, self.config.channels), (axes.EMBED, axes.MLP)
        return LinearLayer("BTD,DR->BTR", shape, logical_axes, self.config.init, self.precision, bias=True, name=name)

    def _out(self) -> LinearLayer:
        shape, logical_axes = (self.config.channels, self.width), (axes.MLP, axes.EMBED)
        return LinearLayer(
            "BTR,RD->BTD", shape, logical_axes, self.config.out_init, self.precision, bias=True, name="out"
        )


@jax.checkpoint
def _terms(
    x_BTR: jax.Array, input_gate_BTR: jax.Array, decay_gate_BTR: jax.Array, rate_R: jax.Array, row: Documents
) -> tuple[jax.Array, jax.Array]:
    """Decay and input of the recurrence, float32 (equations 1 to 4).

    The first token of a document has zero decay and an unscaled input, as in the published code. The function is
    pointwise, so the backward pass recomputes it from its inputs.
    """
    starts_BT1, real_BT1 = row.starts_BT[:, :, None], row.real_BT[:, :, None]
    x_BTR, input_gate_BTR, decay_gate_BTR = (a.astype(jnp.float32) for a in (x_BTR, input_gate_BTR, decay_gate_BTR))
    # Equations 1 to 4: r_t is the sigmoid of the decay gate, a = sigmoid(-rate), so log a = -softplus(rate) and log a_t
    # = c r_t log a.
    log_BTR = _scaled(jax.nn.sigmoid(decay_gate_BTR), -_SHARPNESS * jax.nn.softplus(rate_R.astype(jnp.float32)))
    # sqrt(1 - a_t^2) by expm1: near a decay of 1 the difference would lose its digits.
    scale_BTR = jnp.where(starts_BT1, 1, _root(-jnp.expm1(2 * log_BTR)))
    decay_BTR = jnp.where(starts_BT1, 0, jnp.where(real_BT1, jnp.exp(log_BTR), 1))
    return decay_BTR, jnp.where(real_BT1, scale_BTR * jax.nn.sigmoid(input_gate_BTR) * x_BTR, 0)


@jax.custom_vjp
def _scaled(x_BTR: jax.Array, scale_R: jax.Array) -> jax.Array:
    """x * scale. With this explicit sum for the scale's gradient, XLA on CPUs reads memory in order, and the backward
    pass of long sequences takes a quarter of the time."""
    return x_BTR * scale_R


_scaled.defvjp(
    lambda x_BTR, scale_R: (x_BTR * scale_R, (x_BTR, scale_R)),
    lambda kept, dy_BTR: (dy_BTR * kept[1], jnp.sum(dy_BTR * kept[0], axis=(0, 1))),
)


@jax.custom_jvp
def _root(x: jax.Array) -> jax.Array:
    """The square root, with its derivative limited to `_STEEPEST`."""
    return jnp.sqrt(x)


@_root.defjvp
def _root_slope(x, dx):
    # 1 / (2 sqrt(x)), at most `_STEEPEST`.
    root = _root(x[0])
    return root, dx[0] * 0.5 / jnp.maximum(root, 0.5 / _STEEPEST)


def _slow(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Draws rates for which a^c = exp(-c softplus(rate)) is uniform between `_FASTEST` and `_SLOWEST`."""
    softplus = -jnp.log(jax.random.uniform(key, shape, jnp.float32, _FASTEST, _SLOWEST)) / _SHARPNESS
    return jnp.log(jnp.expm1(softplus)).astype(dtype)

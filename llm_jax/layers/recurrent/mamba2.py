"""The mixer of Mamba-2: a state space model whose transition is one scalar per head.

Legend: B batch, T length, D model width, N heads, K groups of heads that share queries and keys, P head size, H state
size, F features of all heads (N * P), C channels of the convolution (F + 2 * K * H).
"""

import dataclasses
import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm_jax.core.checks import check, check_divides, check_positive
from llm_jax.core.configclass import Unbounded, configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.activations import ACTIVATIONS, GATED
from llm_jax.layers.broadcast import broadcast
from llm_jax.layers.context import Context
from llm_jax.layers.initialisers import Init, Normal, annotated
from llm_jax.layers.linear import LinearLayer
from llm_jax.layers.mixer import Mixer
from llm_jax.layers.norms import normalise
from llm_jax.layers.recurrent.convolution import ConvolutionConfig, Recent
from llm_jax.layers.recurrent.matrix_recurrence import ChunkwiseForm, Form, RecurrentState, recur
from llm_jax.layers.roles import Role
from llm_jax.sharding import axes


@flax.struct.dataclass
class Mamba2State:
    """State of a layer: the last inputs of its convolution, and the matrix of its recurrence."""

    recent: Recent
    recurrence: RecurrentState


@configclass
class TimeScales:
    """Initial time scales of the heads (Gu and Dao 2023, arXiv:2312.00752, 3.6; Dao and Gu 2024, 7.3)."""

    steps: tuple[float, float] = (1e-3, 1e-1)
    """Range of the initial steps at zero input, which are log-uniform."""
    rates: tuple[float, float] = (1.0, 16.0)
    """Range of the initial rates, which are uniform."""

    def __post_init__(self):
        for name, (low, high) in dataclasses.asdict(self).items():
            check(0 < low <= high, f"{name} are {low} to {high}: both must be greater than 0, in ascending order")

    def step_bias(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """Draws step biases: the inverse softplus of the steps."""
        low, high = map(math.log, self.steps)
        steps = jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high))
        # log(exp(step) - 1) in a form that loses no digits for small steps.
        return (steps + jnp.log(-jnp.expm1(-steps))).astype(dtype)

    def log_rate(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """Draws logarithms of rates."""
        low, high = self.rates
        return jnp.log(jax.random.uniform(key, shape, minval=low, maxval=high)).astype(dtype)


@configclass
class Mamba2Config(Mixer):
    """The parallel block of Dao and Gu 2024 (arXiv:2405.21060, 7.1 and figure 6).

    The paper's X, B and C are values, keys and queries of the recurrence (its section 4): here

        value, key, query = silu(convolution(projections of x))
        step = softplus(projection of x + step_bias), decay = exp(-exp(log_rate) * step)
        y = out(norm(silu(gate) * (recurrence(query, key, step * value, decay) + skip * value)))

    where gate (the paper's z) is per feature; step (delta), log_rate (log(-A)) and skip (D) are per head.
    """

    heads: int
    head_dim: int = 64
    groups: int = 1
    """Groups of heads that share queries and keys. The norm is over one group at a time."""
    state_size: int = 128
    """Size of a query or key."""
    convolution: ConvolutionConfig = ConvolutionConfig()
    bias: bool = False
    """Biases on the projections into and out of the mixer."""
    epsilon: float = 1e-5
    """Epsilon of the norm before the output projection."""
    step_limit: tuple[float, Unbounded] = (0.0, math.inf)
    """Steps are clipped to this range."""
    time_scales: TimeScales = TimeScales()
    init: Init = Normal(0.02)
    out_init: Init = Normal(0.02)
    """Initialiser of the output projection, which writes to the residual stream."""
    form: Form = ChunkwiseForm()

    def __post_init__(self):
        check_positive(heads=self.heads, head_dim=self.head_dim, groups=self.groups, state_size=self.state_size)
        check_positive(epsilon=self.epsilon)
        check_divides(self.groups, self.heads, "groups", "heads")
        low, high = self.step_limit
        check(0 <= low < high, f"step_limit is {low} to {high}: it must be an ascending range of numbers of at least 0")

    @property
    def features(self) -> int:
        """Features of all heads together."""
        return self.heads * self.head_dim

    @property
    def projections(self) -> dict[str, tuple[int, str]]:
        """The input projections: {name: (output features, their logical axis)}."""
        # A matrix each, where the published code has one for all: their outputs are sharded along different axes.
        shared = self.groups * self.state_size
        return {
            "gate": (self.features, axes.MLP),
            "value": (self.features, axes.MLP),
            "key": (shared, axes.HEAD_DIM),
            "query": (shared, axes.HEAD_DIM),
            "step": (self.heads, axes.HEADS),
        }

    @property
    def channels(self) -> int:
        """Channels of the convolution: values, keys and queries."""
        return sum(self.projections[name][0] for name in ("value", "key", "query"))

    def build(self, width: int, precision: Precision, name: str) -> "Mamba2":
        return Mamba2(self, width, precision, name=name)

    def parameters(self, width: int) -> int:
        """Number of parameters at model width `width`."""
        projected = sum(size for size, _ in self.projections.values())
        # Three numbers a head are step bias, log rate and skip; the last term is the scale of the norm.
        matrices = width * (projected + self.features) + self.bias * (projected + width)
        return matrices + self.convolution.parameters(self.channels) + 3 * self.heads + self.features

    def matrix_flops(self, width: int) -> int:
        """Forward FLOPs per token of the projections."""
        return 2 * width * (sum(size for size, _ in self.projections.values()) + self.features)

    def mixing_flops(self, length: int) -> float:
        """Forward FLOPs per token of the recurrence in its form, over the allowed pairs of tokens."""
        return self.form.flops(length, self.groups, self.heads, self.state_size, self.head_dim)

    @property
    def causal(self) -> bool:
        """Always true."""
        return True

    @property
    def shape(self) -> str:
        """Heads, as text."""
        return f"{self.heads} of {self.head_dim}, state of {self.state_size}"

    def allocate(self, batch: int, slots: int, dtype: jnp.dtype) -> Mamba2State:
        """An empty state; its size does not depend on `slots`."""
        recent = self.convolution.allocate(batch, self.channels, dtype)
        return Mamba2State(recent, RecurrentState.empty(batch, self.heads, self.state_size, self.head_dim))


class Mamba2(nn.Module):
    """x [B, T, D] -> [B, T, D]."""

    config: Mamba2Config
    width: int
    precision: Precision

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: Context, state: Mamba2State | None = None
    ) -> tuple[jax.Array, Mamba2State | None]:
        """Runs over the sequence. `state` is the state after earlier calls, which this call continues."""
        config, sequence = self.config, context.queries
        # Named before the convolution: if these are saved, the backward pass recomputes no matrix product.
        projected = {
            name: checkpoint_name(self._project(name, *spec)(x_BTD), "qkv") for name, spec in config.projections.items()
        }
        # Convolution of the paper's x, B and C together.
        parts = [projected[name] for name in ("value", "key", "query")]
        convolution = config.convolution.build(config.channels, self.precision, "convolution")
        mixed_BTC, recent = convolution(jnp.concatenate(parts, axis=-1), sequence, state.recent if state else None)
        value_BNTP, key_BKTH, query_BKTH = self._heads(ACTIVATIONS["silu"](mixed_BTC))
        step_BNT, log_BNT = self._steps(projected["step"])
        # Discretisation: the step multiplies the input of the recurrence, and the rate in `log_BNT`.
        added_BNTP = (value_BNTP * step_BNT[..., None]).astype(value_BNTP.dtype)
        # The state space model, as a recurrence of queries, keys and values (section 4).
        memory = state.recurrence if state else None
        y_BNTP, memory = recur(config.form, query_BKTH, key_BKTH, added_BNTP, log_BNT, sequence, memory)
        # D x, then the norm after the gate, and the output projection (figure 6).
        skip_N11 = self._of_heads("skip", nn.initializers.ones_init(), Role.SCALE)[:, None, None]
        y_BNTP = checkpoint_name((y_BNTP + skip_N11 * value_BNTP).astype(value_BNTP.dtype), "context")
        y_BTF = y_BNTP.transpose(0, 2, 1, 3).reshape(projected["gate"].shape)
        y_BTF = GroupedNorm(config.groups, config.epsilon, self.precision, name="norm")(
            GATED["silu"](projected["gate"], y_BTF)
        )
        shape, logical_axes = (config.features, self.width), (axes.MLP, axes.EMBED)
        out = LinearLayer("BTF,FD->BTD", shape, logical_axes, config.out_init, self.precision, config.bias, name="out")
        return out(y_BTF), None if recent is None or memory is None else Mamba2State(recent, memory)

    def _heads(self, mixed_BTC: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Values [B, N, T, P], keys and queries [B, K, T, H]."""
        config, (batch, length, _) = self.config, mixed_BTC.shape
        shared = config.groups * config.state_size
        parts = jnp.split(mixed_BTC, (config.features, config.features + shared), axis=-1)
        sizes = (config.head_dim, config.state_size, config.state_size)
        heads = (part.reshape(batch, length, -1, size) for part, size in zip(parts, sizes, strict=True))
        value, key, query = (x_BTNP.transpose(0, 2, 1, 3) for x_BTNP in heads)
        return value, key, query

    def _steps(self, step_BTN: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Steps and logarithms of decays, float32 [B, N, T]."""
        scales = self.config.time_scales
        bias_N = self._of_heads("step_bias", scales.step_bias, Role.BIAS)
        log_rate_N = self._of_heads("log_rate", scales.log_rate, Role.RATE)
        step_BTN = jnp.clip(jax.nn.softplus(step_BTN.astype(jnp.float32) + bias_N), *self.config.step_limit)
        return step_BTN.transpose(0, 2, 1), (-jnp.exp(log_rate_N) * step_BTN).transpose(0, 2, 1)

    def _of_heads(self, name: str, init: nn.initializers.Initializer, role: Role) -> jax.Array:
        """A parameter with one number per head, float32."""
        init = annotated(init, (axes.HEADS,), role)
        return self.param(name, init, (self.config.heads,), self.precision.param_dtype).astype(jnp.float32)

    def _project(self, name: str, size: int, word: str) -> LinearLayer:
        shape, logical_axes = (self.width, size), (axes.EMBED, word)
        return LinearLayer(
            "BTD,DF->BTF", shape, logical_axes, self.config.init, self.precision, self.config.bias, name=name
        )


class GroupedNorm(nn.Module):
    """RMS norm of x [B, T, F] in each of `groups` equal parts, with a scale per feature."""

    groups: int
    epsilon: float
    precision: Precision

    @nn.compact
    def __call__(self, x_BTF: jax.Array) -> jax.Array:
        features = x_BTF.shape[-1]
        init = annotated(nn.initializers.ones_init(), (axes.NORM,), Role.NORM)
        scale_F = self.param("scale", init, (features,), self.precision.param_dtype)
        size = features // self.groups
        parts = x_BTF.reshape(*x_BTF.shape[:-1], self.groups, size)
        normal_BTF = normalise(parts, jnp.ones(size), self.epsilon, centred=False).reshape(x_BTF.shape)
        return normal_BTF * broadcast(scale_F, x_BTF.shape, x_BTF.dtype)

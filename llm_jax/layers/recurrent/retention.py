"""Gated multi-scale retention, the mixer of RetNet.

Legend: B batch, T length, D model width, N heads, H size of a query or key, P size of a value.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from llm_jax.core.checks import check, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.activations import GATED
from llm_jax.layers.context import Context
from llm_jax.layers.initialisers import Init, Normal
from llm_jax.layers.linear import LinearLayer
from llm_jax.layers.mixer import Mixer
from llm_jax.layers.norms import normalise
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.layers.recurrent.matrix_recurrence import ChunkwiseForm, Form, RecurrentState, recur
from llm_jax.sharding import axes


@configclass
class PowerDecays:
    """1 - 2^(-5 - h) for head h = 0, 1, ... (Sun et al. 2023, arXiv:2307.08621, eq. 8)."""

    def logarithms(self, heads: int) -> np.ndarray:
        """Logarithms of the decays, float32 [N]."""
        return np.log1p(-(2.0 ** (-5.0 - np.arange(heads)))).astype(np.float32)


@configclass
class SpacedDecays:
    """One minus log-spaced values from `first` to `last`. The range does not depend on the number of heads, as in the
    models of the paper (Sun et al. 2023, 3.1)."""

    first: float = 1 / 32
    last: float = 1 / 512

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            check(0 < value < 1, f"{name} is {value}: a decay of 1 - {name} must lie between 0 and 1")

    def logarithms(self, heads: int) -> np.ndarray:
        """Logarithms of the decays, float32 [N]."""
        return np.log1p(-np.exp(np.linspace(math.log(self.first), math.log(self.last), heads))).astype(np.float32)


Decays = PowerDecays | SpacedDecays


@configclass
class RetentionConfig(Mixer):
    """Retention as in Sun et al. 2023 (arXiv:2307.08621, 2.1 and 2.2).

    y = out(silu(gate(x)) * norm(retention(x))). The norm is per head and has no parameters (eq. 8). A score decays and
    rotates with the distance of its two tokens, as in xPos with the decay of the head.

    Of the three normalisation factors of 2.2, only the first, 1 / sqrt(H), is implemented. The norm cancels the others
    up to its epsilon. The third, the sum of the scores of a query, is not available in a recurrence. Without them all
    forms are equal.
    """

    heads: int
    head_dim: int
    """Size of a query or key."""
    value_dim: int
    """Size of a value; twice `head_dim` in the paper (3.1)."""
    decays: Decays = PowerDecays()
    position: RoPEConfig | None = RoPEConfig()
    """Rotary embedding of queries and keys; None: scores only decay."""
    epsilon: float = 1e-5
    """Epsilon of the norm of a head's output."""
    init: Init = Normal(0.02)
    out_init: Init = Normal(0.02)
    """Initialiser of the output projection, which writes to the residual stream."""
    value_init: Init | None = None
    """Initialiser of the projection of values; None: `init`."""
    form: Form = ChunkwiseForm()

    def __post_init__(self):
        check_positive(heads=self.heads, head_dim=self.head_dim, value_dim=self.value_dim, epsilon=self.epsilon)
        if self.position is not None:
            self.position.check_fits(self.head_dim)

    def build(self, width: int, precision: Precision, name: str) -> "Retention":
        return Retention(self, width, precision, name=name)

    def parameters(self, width: int) -> int:
        """Number of parameters at model width `width`."""
        # Queries and keys; values, gate and output.
        return width * self.heads * (2 * self.head_dim + 3 * self.value_dim)

    def matrix_flops(self, width: int) -> int:
        """Forward FLOPs per token of the projections."""
        return 2 * self.parameters(width)

    def mixing_flops(self, length: int) -> float:
        """Forward FLOPs per token of the recurrence in its form, over the allowed pairs of tokens."""
        return self.form.flops(length, self.heads, self.heads, self.head_dim, self.value_dim)

    @property
    def causal(self) -> bool:
        """Always true."""
        return True

    @property
    def shape(self) -> str:
        """Heads, as text."""
        return f"{self.heads} of {self.head_dim}, values of {self.value_dim}"

    def allocate(self, batch: int, slots: int, dtype: jnp.dtype) -> RecurrentState:
        """An empty state; its size does not depend on `slots`."""
        return RecurrentState.empty(batch, self.heads, self.head_dim, self.value_dim)


class Retention(nn.Module):
    """x [B, T, D] -> [B, T, D]."""

    config: RetentionConfig
    width: int
    precision: Precision

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: Context, state: RecurrentState | None = None
    ) -> tuple[jax.Array, RecurrentState | None]:
        """Runs over the sequence. `state` is the state after earlier calls, which this call continues."""
        config, sequence = self.config, context.queries
        q_BNTH = self._project("query", config.head_dim)(x_BTD)
        # The first of the three normalisations of section 2.2, applied to the keys.
        k_BNTH = self._project("key", config.head_dim)(x_BTD) * config.head_dim**-0.5
        v_BNTP = checkpoint_name(self._project("value", config.value_dim)(x_BTD), "qkv")
        gate_BNTP = checkpoint_name(self._project("gate", config.value_dim)(x_BTD), "qkv")
        if config.position is not None:
            q_BNTH, k_BNTH = (
                config.position.rotate(x_BNTH, sequence.positions_BT, sequence.lengths_BT)
                for x_BNTH in (q_BNTH, k_BNTH)
            )
        q_BNTH, k_BNTH = checkpoint_name(q_BNTH, "qkv"), checkpoint_name(k_BNTH, "qkv")
        # The decays are constants, so one sequence stands for the batch.
        log_BNT = jnp.broadcast_to(config.decays.logarithms(config.heads)[:, None], (1, config.heads, x_BTD.shape[1]))
        y_BNTP, state = recur(config.form, q_BNTH, k_BNTH, v_BNTP, log_BNT, sequence, state)
        y_BNTP = checkpoint_name(y_BNTP.astype(v_BNTP.dtype), "context")
        # The group norm, one group a head, and the swish gate (eq. 8).
        y_BNTP = normalise(y_BNTP, jnp.ones(config.value_dim), config.epsilon, centred=True)
        y_BNTP = GATED["silu"](gate_BNTP, y_BNTP)
        shape, logical_axes = (config.heads, config.value_dim, self.width), (axes.HEADS, axes.HEAD_DIM, axes.EMBED)
        out = LinearLayer("BNTP,NPD->BTD", shape, logical_axes, config.out_init, self.precision, name="out")
        return out(y_BNTP), state

    def _project(self, name: str, size: int) -> LinearLayer:
        shape, logical_axes = (self.width, self.config.heads, size), (axes.EMBED, axes.HEADS, axes.HEAD_DIM)
        init = self.config.value_init if name == "value" and self.config.value_init else self.config.init
        return LinearLayer("BTD,DNP->BNTP", shape, logical_axes, init, self.precision, name=name)

"""Long short-term memory (Hochreiter and Schmidhuber 1997; with forget gates, Gers et al. 2000) in the formulation of
Zaremba et al. 2014 (arXiv:1409.2329, section 3.1).

Legend: B batch, T length, D model width, G gates (4), H hidden size, K as H.
"""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm_jax.core.checks import check, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.context import Context
from llm_jax.layers.initialisers import Init, Normal, Zero
from llm_jax.layers.linear import LinearLayer
from llm_jax.layers.mixer import Mixer
from llm_jax.layers.recurrent.document_starts import documents
from llm_jax.sharding import axes

_GATES = 4
"""Input, forget, candidate, output, in this order."""


@flax.struct.dataclass
class LSTMState:
    """State of a layer after the last real token of every sequence.

    Attributes:
      h_BH: hidden state, in the compute dtype.
      c_BH: float32, cell state.
      segment_ids_B: int32, the segment id of that token; 0 if there was none.
    """

    h_BH: jax.Array
    c_BH: jax.Array
    segment_ids_B: jax.Array


@configclass
class LSTMConfig(Mixer):
    """One LSTM layer. Its output has the model width."""

    hidden: int
    """Number of cells."""
    init: Init = Normal(0.02)
    bias_init: Init = Zero()

    def __post_init__(self):
        check_positive(hidden=self.hidden)

    def build(self, width: int, precision: Precision, name: str) -> "LSTM":
        self._check_fits(width)
        return LSTM(self, width, precision, name=name)

    def parameters(self, width: int) -> int:
        """Number of parameters at model width `width`."""
        self._check_fits(width)
        # W, U and b of every gate.
        return _GATES * self.hidden * (width + self.hidden + 1)

    def matrix_flops(self, width: int) -> int:
        """Forward FLOPs per token, including those of the recurrence."""
        return 2 * _GATES * self.hidden * (width + self.hidden)

    def mixing_flops(self, length: int) -> float:
        """0: tokens interact only through the recurrence, whose cost does not depend on the length."""
        return 0.0

    @property
    def causal(self) -> bool:
        """Always true."""
        return True

    @property
    def shape(self) -> str:
        """Cells, as text."""
        return f"{self.hidden} memory cells"

    def allocate(self, batch: int, slots: int, dtype: jnp.dtype) -> LSTMState:
        """An empty state; its size does not depend on `slots`."""
        shape = (batch, self.hidden)
        return LSTMState(jnp.zeros(shape, dtype), jnp.zeros(shape, jnp.float32), jnp.zeros(batch, jnp.int32))

    def _check_fits(self, width: int) -> None:
        check(
            self.hidden == width,
            f"mixer.hidden is {self.hidden} and the model's width is {width}: they must be equal, since the hidden "
            "state is the output",
        )


class LSTM(nn.Module):
    """x [B, T, D] -> [B, T, H], where H is D."""

    config: LSTMConfig
    width: int
    precision: Precision

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: Context, state: LSTMState | None = None
    ) -> tuple[jax.Array, LSTMState | None]:
        """Runs over the sequence. `state` is the state after earlier calls, which this call continues."""
        config = self.config
        before = config.allocate(len(x_BTD), 0, self.precision.dtype) if state is None else state
        row = documents(context.queries, before.segment_ids_B)
        # The contribution of the inputs to the gates is one product for all tokens. Only the recurrent product is
        # sequential.
        shape, logical_axes = (self.width, _GATES, config.hidden), (axes.EMBED, axes.HEAD_DIM, axes.MLP)
        into = LinearLayer(
            "BTD,DGH->BTGH", shape, logical_axes, config.init, self.precision, True, config.bias_init, name="input"
        )
        gates_BTGH = checkpoint_name(into(x_BTD), "qkv")
        # flax infers the type of `in_axes` from its default, an int.
        along: dict[str, Any] = {"in_axes": (1, 1, 1), "out_axes": 1}
        # The check traces the cell twice. Its parameters cannot be created without it.
        along["check_constancy_invariants"] = self.is_initializing()
        scanned = nn.scan(LSTMCell, variable_broadcast="params", split_rngs={"params": False}, **along)
        run = scanned(config, self.precision, name="cell")
        (h_BH, c_BH), y_BTH = run((before.h_BH, before.c_BH), gates_BTGH, row.starts_BT, row.real_BT)
        return y_BTH, None if state is None else LSTMState(h_BH, c_BH, row.last_B)


class LSTMCell(nn.Module):
    """One step: (h, c) [B, H] each -> the same after a token.

    i, f, o = sigmoid and g = tanh of W x + U h + b; c' = f c + i g; h' = o tanh(c') (section 3.1).
    """

    config: LSTMConfig
    precision: Precision

    @nn.compact
    def __call__(
        self, carry: tuple[jax.Array, jax.Array], gates_BGH: jax.Array, start_B: jax.Array, real_B: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        # A document starts from a zero state.
        h_BH, c_BH = (jnp.where(start_B[:, None], 0, part) for part in carry)
        hidden = self.config.hidden
        shape, logical_axes = (hidden, _GATES, hidden), (axes.EMBED, axes.HEAD_DIM, axes.MLP)
        # Without a bias: that of the input projection serves both products.
        recurrent = LinearLayer("BK,KGH->BGH", shape, logical_axes, self.config.init, self.precision, name="recurrent")
        # float32 from here: the cell state adds up small changes over many tokens.
        gates_BGH = (gates_BGH + recurrent(h_BH)).astype(jnp.float32)
        input_BH, forget_BH, candidate_BH, output_BH = (gates_BGH[:, gate] for gate in range(_GATES))
        c_BH = jax.nn.sigmoid(forget_BH) * c_BH + jax.nn.sigmoid(input_BH) * jnp.tanh(candidate_BH)
        h_BH = (jax.nn.sigmoid(output_BH) * jnp.tanh(c_BH)).astype(self.precision.dtype)
        # Padding leaves the state unchanged; it does not end a document.
        h_BH, c_BH = (jnp.where(real_B[:, None], new, old) for new, old in zip((h_BH, c_BH), carry, strict=True))
        return (h_BH, c_BH), h_BH

"""Dense feed-forward layers: two-matrix and gated.

Legend: B batch, T length, D model width, F ffn width.
"""

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from llm_jax.core.checks import check_fraction, check_one_of, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.activations import ACTIVATIONS, GATED, Activation, Gate
from llm_jax.layers.barrier import fence, fence_gradients
from llm_jax.layers.context import Context
from llm_jax.layers.ffn.ffn import FFN
from llm_jax.layers.initialisers import Init, Normal
from llm_jax.layers.linear import LinearLayer
from llm_jax.layers.tap import tap
from llm_jax.sharding import axes


@configclass
class MLPConfig(FFN):
    """down(activation(up(x))) (Vaswani et al. 2017, arXiv:1706.03762, eq. 2)."""

    hidden: int
    activation: Activation = "gelu_tanh"
    bias: bool = True
    init: Init = Normal(0.02)
    out_init: Init = Normal(0.02)
    """Initialiser of the down projection, which writes to the residual stream."""
    dropout: float = 0.0
    """Dropout rate of the input of the down projection in training."""

    def __post_init__(self):
        _check(self)

    def build(self, width: int, precision: Precision, name: str) -> "MLP":
        return MLP(self, width, precision, name=name)

    def parameters(self, width: int) -> int:
        return 2 * width * self.hidden + self.bias * (width + self.hidden)

    def matrix_flops(self, width: int) -> int:
        """Forward FLOPs per token."""
        return 4 * width * self.hidden


@configclass
class GLUConfig(FFN):
    """down(activation(gate(x)) * up(x)): SwiGLU with silu (Shazeer 2020, arXiv:2002.05202, eq. 6)."""

    hidden: int
    activation: Gate = "silu"
    bias: bool = False
    init: Init = Normal(0.02)
    out_init: Init = Normal(0.02)
    """Initialiser of the down projection, which writes to the residual stream."""
    dropout: float = 0.0
    """Dropout rate of the input of the down projection in training."""

    def __post_init__(self):
        _check(self)

    def build(self, width: int, precision: Precision, name: str) -> "GLU":
        return GLU(self, width, precision, name=name)

    def parameters(self, width: int) -> int:
        return 3 * width * self.hidden + self.bias * (width + 2 * self.hidden)

    def matrix_flops(self, width: int) -> int:
        """Forward FLOPs per token."""
        return 6 * width * self.hidden


DenseConfig = MLPConfig | GLUConfig
"""A feed-forward layer without experts."""


class MLP(nn.Module):
    """x [B, T, D] -> [B, T, D]."""

    config: MLPConfig
    width: int
    precision: Precision

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> tuple[jax.Array, None]:
        up_BTF = fence_gradients(checkpoint_name(_into(self, "up")(x_BTD), "ffn"))
        inner_BTF = ACTIVATIONS[self.config.activation](up_BTF)
        tap(self, "inner", lambda: inner_BTF)
        # On TPUs the inner features are finished before the down projection reads them, and the gradients of the
        # activation's inputs before the products that read those: see barrier.py.
        return _out(self)(fence(_dropped(self, inner_BTF))), None


class GLU(nn.Module):
    """x [B, T, D] -> [B, T, D]."""

    config: GLUConfig
    width: int
    precision: Precision

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> tuple[jax.Array, None]:
        gate_BTF = checkpoint_name(_into(self, "gate")(x_BTD), "ffn")
        up_BTF = checkpoint_name(_into(self, "up")(x_BTD), "ffn")
        gate_BTF, up_BTF = fence_gradients((gate_BTF, up_BTF))
        inner_BTF = GATED[self.config.activation](gate_BTF, up_BTF)
        tap(self, "inner", lambda: inner_BTF)
        return _out(self)(fence(_dropped(self, inner_BTF))), None


def _check(config: DenseConfig) -> None:
    check_positive(hidden=config.hidden)
    check_fraction(dropout=config.dropout)
    check_one_of("activation", config.activation, GATED if isinstance(config, GLUConfig) else ACTIVATIONS)


def _dropped(module: MLP | GLU, x_BTF: jax.Array) -> jax.Array:
    return nn.Dropout(module.config.dropout, deterministic=not module.has_rng("dropout"))(x_BTF)


def _into(module: MLP | GLU, name: str) -> LinearLayer:
    config = module.config
    shape = (module.width, config.hidden)
    return LinearLayer(
        "BTD,DF->BTF", shape, (axes.EMBED, axes.MLP), config.init, module.precision, config.bias, name=name
    )


def _out(module: MLP | GLU) -> LinearLayer:
    config = module.config
    shape = (config.hidden, module.width)
    return LinearLayer(
        "BTF,FD->BTD", shape, (axes.MLP, axes.EMBED), config.out_init, module.precision, config.bias, name="down"
    )

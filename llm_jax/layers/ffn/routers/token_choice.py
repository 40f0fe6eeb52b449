"""Routers by which every token chooses its experts from scores of its own.

Legend: B batch, T length, D model width, E experts, K choices of a token.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.checks import check, check_positive
from llm_jax.core.dtypes import Precision
from llm_jax.layers.ffn.routing import Choice, Routed
from llm_jax.layers.linear import Init, Linear, Normal
from llm_jax.layers.mixers.context import Context
from llm_jax.sharding import axes


@dataclasses.dataclass(frozen=True)
class SoftmaxConfig:
    """The experts of the highest probabilities softmax(x W) (Shazeer et al. 2017, arXiv:1701.06538, section 2.1)."""

    top: int
    """Experts that a token chooses."""
    normalized: bool = True
    """Whether the weights of those chosen add up to one (Mixtral; arXiv:2401.04088, 2.1), else they are the
    probabilities (Switch; arXiv:2101.03961, eq. 1)."""
    init: Init = Normal(0.02)

    causal = True

    def __post_init__(self):
        check_positive(top=self.top)

    def check(self, experts: int) -> None:
        """
        Raises:
          ValueError: for more choices than experts.
        """
        check(self.top <= experts, f"router.top is {self.top} and there are {experts} experts: choose at most as many")

    def build(self, width: int, experts: int, precision: Precision, name: str) -> "SoftmaxRouter":
        return SoftmaxRouter(self, width, experts, precision, name=name)

    def parameters(self, width: int, experts: int) -> int:
        return width * experts

    def matrix_flops(self, width: int, experts: int) -> int:
        """Forward FLOPs per token."""
        return 2 * width * experts

    def choices(self, experts: int) -> float:
        """Mean number of experts that a token visits."""
        return self.top


class SoftmaxRouter(nn.Module):
    """x [B, T, D] -> Routed."""

    config: SoftmaxConfig
    width: int
    experts: int
    precision: Precision

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> Routed:
        shape, precision = (self.width, self.experts), Precision(self.precision.params, "float32")
        scores = Linear("BTD,DE->BTE", shape, (axes.EMBED, axes.ROUTES), self.config.init, precision, name="scores")
        logits_BTE = scores(x_BTD)
        scores_BTE = jax.nn.softmax(logits_BTE)
        weights_BTK, experts_BTK = jax.lax.top_k(scores_BTE, self.config.top)
        if self.config.normalized:
            weights_BTK /= jnp.sum(weights_BTK, axis=-1, keepdims=True)
        return Routed(Choice(experts_BTK, weights_BTK), logits_BTE, scores_BTE)

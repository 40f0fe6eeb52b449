"""Soft routing: experts compute weighted means of tokens.

Legend: B batch, T length, D model width, E experts, S slots of an expert, Z slots of all experts.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.checks import check_positive
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.context import Context
from llm_jax.layers.ffn.routers.router_scores import Scoring
from llm_jax.layers.ffn.routing import Routed, Router, SoftAssignment
from llm_jax.layers.initialisers import Init, Normal, annotated
from llm_jax.layers.roles import Role
from llm_jax.sharding import axes


@configclass
class SoftConfig(Router):
    """Every slot of an expert is a weighted mean of all tokens of a sequence, and every token gets a weighted mean of
    the results of all slots (Soft MoE; Puigcerver et al. 2023, arXiv:2308.00951, section 2).

    A token depends on all tokens of its sequence, including those of other documents. Use it in encoders, with
    unpacked sequences.
    """

    slots: int
    """Number of slots of each expert."""
    length: int
    """Sequence length for which costs are counted; the paper has as many slots in total."""
    init: Init = Normal(0.02)

    routes = SoftAssignment
    scored = False

    @property
    def causal(self) -> bool:
        return False

    def __post_init__(self):
        check_positive(slots=self.slots, length=self.length)

    def build(self, width: int, experts: int, precision: Precision, name: str) -> "SoftRouter":
        return SoftRouter(self, width, experts, precision, name=name)

    def parameters(self, width: int, experts: int) -> int:
        return width * experts * self.slots + 1

    def matrix_flops(self, width: int, experts: int) -> int:
        """Forward FLOPs per token: scores, slots, and weighted means of their results."""
        return 3 * 2 * width * experts * self.slots

    def choices(self, experts: int) -> float:
        """Mean number of slots per token, which is its expert computation in units of one expert."""
        return experts * self.slots / self.length


class SoftRouter(Scoring):
    """x [B, T, D] -> Routed."""

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> Routed:
        real_BT1 = context.queries.real_BT[..., None]
        # Not -inf, which would make the softmax over the slots of a padding token NaN. The products with `real_BT1` set
        # its weights to 0.
        logits_BTZ = jnp.where(real_BT1, self._cosines(x_BTD), jnp.finfo("float32").min)
        shape = (*x_BTD.shape[:2], self.experts, self.config.slots)
        # A slot is a mean over tokens (D of the paper), and a token's result a mean over slots (C).
        dispatch_BTZ = jax.nn.softmax(logits_BTZ, axis=1) * real_BT1
        combine_BTZ = jax.nn.softmax(logits_BTZ, axis=2) * real_BT1
        return Routed(SoftAssignment(dispatch_BTZ.reshape(shape), combine_BTZ.reshape(shape)))

    def _cosines(self, x_BTD: jax.Array) -> jax.Array:
        """Cosine similarity of each token and each slot, times a learned scale. It keeps the softmax soft in wide
        models (section 2.3)."""
        matrix = self.matrix("scores", self.experts * self.config.slots)
        ones = annotated(nn.initializers.ones_init(), (axes.ROUTES,), Role.SCALE)
        scale_1 = self.param("scale", ones, (1,), self.precision.param_dtype).astype("float32")
        products_BTZ = matrix(_unit(x_BTD.astype("float32"), -1))
        return scale_1 * products_BTZ / (jnp.linalg.norm(matrix.kernel.astype("float32"), axis=0) + 1e-6)


def _unit(x: jax.Array, axis: int) -> jax.Array:
    """x normalised to length one along an axis; 0 stays 0."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis, keepdims=True) + 1e-12)

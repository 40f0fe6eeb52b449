"""Balanced assignment of tokens to experts by Sinkhorn's algorithm.

Legend: B batch, T length, D model width, E experts, K choices of a token.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.checks import check, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.context import Context
from llm_jax.layers.ffn.routers.groups import best
from llm_jax.layers.ffn.routers.router_scores import Scoring
from llm_jax.layers.ffn.routing import Choice, Routed, Router
from llm_jax.layers.initialisers import Init, Normal


@configclass
class SinkhornConfig(Router):
    """In training an assignment of tokens to experts that balances their load, in evaluation the experts of highest
    logits; weights are sigmoid(logit) in both (BASE: Lewis et al. 2021, arXiv:2103.16716, section 3; by Sinkhorn's
    algorithm: Clark et al. 2022, arXiv:2202.01169). BASE solves the assignment exactly, with equal loads. Here loads
    are only approximately equal after `iterations` iterations.

    The assignment is computed over all tokens of a call. In training the expert of a token therefore depends on later
    tokens and on other sequences.
    """

    top: int = 1
    """Number of experts that a token chooses."""
    iterations: int = 8
    """Number of normalisations of columns and rows of the assignment. More iterations give a more even load."""
    allow_future: bool = False
    """Whether a causal model may be trained with it."""
    init: Init = Normal(0.02)

    def __post_init__(self):
        check_positive(top=self.top, iterations=self.iterations)

    @property
    def causal(self) -> bool:
        return self.allow_future

    def check(self, experts: int) -> None:
        """
        Raises:
          ValueError: if `top` exceeds the number of experts.
        """
        check(
            self.top <= experts,
            f"router.top is {self.top} and there are {experts} experts: it must not exceed the number of experts",
        )

    def build(self, width: int, experts: int, precision: Precision, name: str) -> "SinkhornRouter":
        return SinkhornRouter(self, width, experts, precision, name=name)

    def parameters(self, width: int, experts: int) -> int:
        return width * experts

    def matrix_flops(self, width: int, experts: int) -> int:
        """Forward FLOPs per token."""
        return 2 * width * experts

    def choices(self, experts: int) -> float:
        """Mean number of experts per token."""
        return self.top


class SinkhornRouter(Scoring):
    """x [B, T, D] -> Routed."""

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> Routed:
        logits_BTE = ranks_BTE = self.logits(x_BTD)
        if self.has_rng("dropout"):
            real_BT = context.queries.real_BT
            ranks_BTE += evening(jax.lax.stop_gradient(logits_BTE), real_BT, self.config.iterations)
        experts_BTK = best(ranks_BTE, self.config.top)
        weights_BTK = jax.nn.sigmoid(jnp.take_along_axis(logits_BTE, experts_BTK, axis=-1))
        return Routed(Choice(experts_BTK, weights_BTK), logits_BTE, jax.nn.softmax(logits_BTE))


def evening(logits_BTE: jax.Array, real_BT: jax.Array, iterations: int) -> jax.Array:
    """The term [E] whose addition to the logits makes the softmax over experts, summed over real tokens, equal for all
    experts (Sinkhorn and Knopp 1967)."""
    real_BT1 = real_BT[..., None]
    share = jnp.log(jnp.maximum(jnp.sum(real_BT), 1) / logits_BTE.shape[-1])

    def turn(added_E: jax.Array, _: None) -> tuple[jax.Array, None]:
        # One iteration, in logarithms: each token's row is normalised to 1, then the column of each expert to its share
        # of the tokens.
        scaled_BTE = jax.nn.log_softmax(logits_BTE + added_E)
        given_E = jax.nn.logsumexp(jnp.where(real_BT1, scaled_BTE, -jnp.inf), axis=(0, 1))
        return added_E + jnp.where(jnp.isfinite(given_E), share - given_E, 0), None

    return jax.lax.scan(turn, jnp.zeros(logits_BTE.shape[-1]), length=iterations)[0]

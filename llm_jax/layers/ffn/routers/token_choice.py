"""Token-choice routing: every token chooses the experts of its highest scores.

Of equal scores the expert of the lowest index is chosen.

Legend: B batch, T length, D model width, E experts, K choices of a token.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.checks import check, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.context import Context
from llm_jax.layers.ffn.routers.groups import GroupLimit, best
from llm_jax.layers.ffn.routers.router_scores import Noise, Scoring
from llm_jax.layers.ffn.routing import Choice, Routed, Router
from llm_jax.layers.initialisers import Init, Normal, annotated
from llm_jax.layers.roles import Role
from llm_jax.sharding import axes


class _TopConfig(Router):
    """Base of configs by which a token chooses `top` experts."""

    top: int
    scale: float
    limit: GroupLimit | None

    def __post_init__(self):
        check_positive(top=self.top, scale=self.scale)

    def check(self, experts: int) -> None:
        """
        Raises:
          ValueError: if `top` exceeds the number of experts, or the groups do not fit it.
        """
        check(
            self.top <= experts,
            f"router.top is {self.top} and there are {experts} experts: it must not exceed the number of experts",
        )
        if self.limit is not None:
            self.limit.check(experts, self.top)

    def choices(self, experts: int) -> float:
        """Mean number of experts per token."""
        return self.top


@configclass
class SoftmaxConfig(_TopConfig):
    """The experts of the highest probabilities softmax(x W) (Shazeer et al. 2017, arXiv:1701.06538, section 2.1)."""

    top: int
    """Number of experts that a token chooses."""
    normalized: bool = True
    """Whether the weights of the chosen experts are normalised to sum to one, which equals the softmax of their logits
    (GShard, Mixtral, gpt-oss, DBRX). Otherwise they are the probabilities (Switch; arXiv:2101.03961, eq. 2). With
    `top` 1, a normalised weight is always 1, so the router gets no gradient from it."""
    scale: float = 1.0
    """Factor of the final weights."""
    bias: bool = False
    """Whether the router's matrix has a bias (gpt-oss)."""
    limit: GroupLimit | None = None
    noise: Noise | None = None
    """Noise of the logits in training, if there is a random key for dropout."""
    random_second: bool = False
    """Whether the second choice is kept in training only with probability twice its weight (Lepikhin et al. 2020,
    arXiv:2006.16668, algorithm 1)."""
    init: Init = Normal(0.02)

    def __post_init__(self):
        super().__post_init__()
        check(
            not self.random_second or self.top == 2,
            f"router.random_second is True and router.top {self.top}: set router.top to 2",
        )

    def build(self, width: int, experts: int, precision: Precision, name: str) -> "SoftmaxRouter":
        return SoftmaxRouter(self, width, experts, precision, name=name)

    def parameters(self, width: int, experts: int) -> int:
        noise = self.noise.parameters(width, experts) if self.noise else 0
        return width * experts + self.bias * experts + noise

    def matrix_flops(self, width: int, experts: int) -> int:
        """Forward FLOPs per token."""
        return 2 * (self.parameters(width, experts) - self.bias * experts)


@configclass
class SigmoidConfig(_TopConfig):
    """The experts of the highest sigmoid(x W) + bias. The bias affects the choice only; the weights are computed
    without it (DeepSeek-V3, arXiv:2412.19437, eq. 13 to 16)."""

    top: int
    """Number of experts that a token chooses."""
    normalized: bool = True
    """Whether the weights of the chosen experts are normalised to sum to one; otherwise they are the scores."""
    scale: float = 1.0
    """Factor of the final weights: 2.5 in DeepSeek-V3."""
    corrected: bool = True
    """Whether there is a bias. It gets no gradient; a `BiasUpdate` changes it by the load (Wang et al. 2024,
    arXiv:2408.15664, algorithm 1)."""
    limit: GroupLimit | None = None
    noise: Noise | None = None
    """Noise of the logits in training, if there is a random key for dropout."""
    init: Init = Normal(0.02)

    @property
    def has_bias(self) -> bool:
        return self.corrected

    def build(self, width: int, experts: int, precision: Precision, name: str) -> "SigmoidRouter":
        return SigmoidRouter(self, width, experts, precision, name=name)

    def parameters(self, width: int, experts: int) -> int:
        noise = self.noise.parameters(width, experts) if self.noise else 0
        return width * experts + self.corrected * experts + noise

    def matrix_flops(self, width: int, experts: int) -> int:
        """Forward FLOPs per token."""
        return 2 * (self.parameters(width, experts) - self.corrected * experts)


class SoftmaxRouter(Scoring):
    """x [B, T, D] -> Routed."""

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> Routed:
        config = self.config
        logits_BTE = self.logits(x_BTD, config.bias, config.noise)
        scores_BTE = jax.nn.softmax(logits_BTE)
        choice = _choice(config, scores_BTE, scores_BTE)
        if config.random_second and self.has_rng("dropout"):
            weights_BTK = choice.weights_BTK
            drawn_BT = jax.random.uniform(self.make_rng("dropout"), weights_BTK.shape[:-1])
            # The weight contains `scale`, which the probability must not.
            kept_BT = 2 * weights_BTK[..., 1] > drawn_BT * config.scale
            kept_BTK = jnp.stack([jnp.ones_like(kept_BT), kept_BT], axis=-1)
            choice = dataclasses.replace(choice, weights_BTK=jnp.where(kept_BTK, weights_BTK, 0))
        return Routed(choice, logits_BTE, scores_BTE)


class SigmoidRouter(Scoring):
    """x [B, T, D] -> Routed."""

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> Routed:
        logits_BTE = self.logits(x_BTD, noise=self.config.noise)
        scores_BTE = ranks_BTE = jax.nn.sigmoid(logits_BTE)
        if self.config.corrected:
            zeros = annotated(nn.initializers.zeros_init(), (axes.ROUTES,), Role.BALANCE)
            # Always float32: bfloat16 would lose an increment of a thousandth at a value of one.
            ranks_BTE += jax.lax.stop_gradient(self.param("bias", zeros, (self.experts,), "float32"))
        return Routed(_choice(self.config, scores_BTE, ranks_BTE), logits_BTE, scores_BTE)


def _choice(config: SoftmaxConfig | SigmoidConfig, scores_BTE: jax.Array, ranks_BTE: jax.Array) -> Choice:
    """The choice of the experts of highest rank, with weights from their scores."""
    experts_BTK = best(ranks_BTE, config.top, config.limit)
    weights_BTK = jnp.take_along_axis(scores_BTE, experts_BTK, axis=-1)
    # Before the normalisation, which would make the best scores of all tokens equal with one choice.
    best_BT = jax.lax.stop_gradient(jnp.max(weights_BTK, axis=-1))
    if config.normalized:
        # The term is that of DeepSeek-V3's code. It prevents 0 / 0 where all sigmoids of a token underflow.
        weights_BTK /= jnp.sum(weights_BTK, axis=-1, keepdims=True) + 1e-20
    return Choice(experts_BTK, weights_BTK * config.scale, best_BT)

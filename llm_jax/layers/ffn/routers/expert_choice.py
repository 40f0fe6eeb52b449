"""Expert-choice routing: every expert picks its tokens.

Legend: B batch, T length, D model width, E experts, G groups of a sequence, N tokens of a group, C tokens that an
expert picks from a group.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.checks import check, check_divides, check_positive, check_positive_if_given
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.context import Context
from llm_jax.layers.ffn.routers.router_scores import Scoring
from llm_jax.layers.ffn.routing import Picks, Routed, Router
from llm_jax.layers.initialisers import Init, Normal
from llm_jax.sharding import axes, partition


@configclass
class ExpertChoiceConfig(Router):
    """Every expert picks the same number of tokens of a group, those with its highest probabilities softmax(x W). A
    token is served by all experts that pick it, possibly none (Zhou et al. 2022, arXiv:2202.09368, section 3.2).

    Whether a token is picked depends on later tokens. This leaks information about the targets of a causal model, and
    in autoregressive decoding the picks differ from those in training.
    """

    factor: float = 2.0
    """Mean number of experts that pick a token; the paper's capacity factor."""
    group: int | None = None
    """Number of consecutive tokens of a sequence that form a group; None: the whole sequence."""
    allow_future: bool = False
    """Whether a causal model may use this router nevertheless."""
    init: Init = Normal(0.02)

    routes = Picks

    def __post_init__(self):
        check_positive(factor=self.factor)
        check_positive_if_given(group=self.group)

    @property
    def causal(self) -> bool:
        return self.allow_future

    def check(self, experts: int) -> None:
        """
        Raises:
          ValueError: if `factor` exceeds the number of experts.
        """
        check(
            self.factor <= experts,
            f"router.factor is {self.factor} and there are {experts} experts: it must not exceed the number of experts",
        )

    def check_rows(self, length: int, parts: int) -> None:
        """
        Raises:
          ValueError: if groups do not divide a sequence of `length` tokens in `parts` shards, one per device. A
            sequence shorter than a group is one group.
        """
        if self.group is not None and self.group < length:
            check_divides(self.group, length, "router.group", "the length of a sequence")
            held = length // parts
            check(
                held % self.group == 0,
                f"router.group is {self.group} and a device holds {held} of the {length} tokens of a sequence: it "
                f"must hold whole groups; set router.group to a divisor of {held}, or do not shard sequences",
            )

    def build(self, width: int, experts: int, precision: Precision, name: str) -> "ExpertChoiceRouter":
        return ExpertChoiceRouter(self, width, experts, precision, name=name)

    def parameters(self, width: int, experts: int) -> int:
        return width * experts

    def matrix_flops(self, width: int, experts: int) -> int:
        """Forward FLOPs per token."""
        return 2 * width * experts

    def choices(self, experts: int) -> float:
        """Mean number of experts per token."""
        return self.factor

    def picks(self, tokens: int, experts: int) -> int:
        """Number of tokens that an expert picks from a group of `tokens` real tokens: at least one unless it is
        empty."""
        return min(tokens, math.ceil(tokens * self.factor / experts))


class ExpertChoiceRouter(Scoring):
    """x [B, T, D] -> Routed."""

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> Routed:
        batch, length = x_BTD.shape[:2]
        group = length if self.config.group is None else min(self.config.group, length)
        logits_BTE = self.logits(x_BTD)
        scores_BTE = jax.nn.softmax(logits_BTE)
        # Padding is picked last and with weight 0. It does not count in the number of picks.
        known_BTE = jnp.where(context.queries.real_BT[..., None], scores_BTE, 0)
        known_BGEN = jnp.swapaxes(known_BTE.reshape(batch, -1, group, self.experts), 2, 3)
        by_tokens = np.array([self.config.picks(tokens, self.experts) for tokens in range(group + 1)], np.int32)
        picks = int(by_tokens[-1])
        # A group must be on one device, so sequences are sharded only where they consist of several groups.
        logical_axes = (axes.BATCH, axes.LENGTH) if length > group else (axes.BATCH,)
        picked = partition.per_shard(lambda known_BGEN: jax.lax.top_k(known_BGEN, picks)[1], *logical_axes)
        # Indices have no gradient; the weights below have.
        places_BGEC = picked(jax.lax.stop_gradient(known_BGEN))
        real_BG = jnp.sum(context.queries.real_BT.reshape(batch, -1, group), axis=-1, dtype=jnp.int32)
        # `picks` is the static number for a full group. A group with padding has fewer; its further picks get weight 0.
        counts_BGEC = jnp.arange(picks) < jnp.asarray(by_tokens)[real_BG][..., None, None]
        weights_BGEC = jnp.where(counts_BGEC, jnp.take_along_axis(known_BGEN, places_BGEC, axis=-1), 0)
        return Routed(Picks(places_BGEC, weights_BGEC), logits_BTE, scores_BTE)

"""Top-k choice of experts, and its limit to few groups of experts, such as those of one machine.

Legend: B batch, T length, E experts, K choices of a token, G groups, S experts of a group.
"""

import jax
import jax.numpy as jnp

from llm_jax.core.checks import check, check_divides, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.sharding import axes, partition


@configclass
class GroupLimit:
    """Group-limited routing: consecutive experts form groups, and a token chooses only from its best groups
    (DeepSeek-V2, arXiv:2405.04434, 2.2.2; DeepSeek-V3, arXiv:2412.19437, 2.1.2)."""

    groups: int
    kept: int
    """Number of groups that a token chooses from."""
    best: int = 2
    """The score of a group is the sum of its `best` highest scores: 1 in DeepSeek-V2, 2 in DeepSeek-V3."""

    def __post_init__(self):
        check_positive(groups=self.groups, kept=self.kept, best=self.best)
        check(
            self.kept <= self.groups,
            f"limit.kept is {self.kept} and limit.groups {self.groups}: kept must not exceed groups",
        )

    def check(self, experts: int, top: int) -> None:
        """
        Raises:
          ValueError: if groups would differ in size, or the kept groups have too few experts.
        """
        check_divides(self.groups, experts, "limit.groups", "count")
        size = experts // self.groups
        check(
            self.best <= size,
            f"limit.best is {self.best} and a group has {size} experts: best must not exceed that number",
        )
        check(
            self.kept * size >= top,
            f"limit.kept is {self.kept} groups of {size} experts, and a token chooses {top} experts: increase "
            "limit.kept",
        )

    def masked(self, scores_BTE: jax.Array) -> jax.Array:
        """Scores, with minus infinity outside the kept groups. Of groups with equal scores the first are kept."""
        grouped_BTGS = scores_BTE.reshape(*scores_BTE.shape[:-1], self.groups, -1)
        groups_BTG = jnp.sum(jax.lax.top_k(grouped_BTGS, self.best)[0], axis=-1)
        # [B, T, kept, G], then whether a group is one of them.
        kept_BTG = jax.nn.one_hot(jax.lax.top_k(groups_BTG, self.kept)[1], self.groups, dtype=bool).any(axis=-2)
        return jnp.where(kept_BTG[..., None], grouped_BTGS, -jnp.inf).reshape(scores_BTE.shape)


def best(ranks_BTE: jax.Array, top: int, limit: GroupLimit | None = None) -> jax.Array:
    """The `top` experts of highest rank, int32 [B, T, K], the best first; of equal ranks the first."""

    def found(ranks_BTE: jax.Array) -> jax.Array:
        return jax.lax.top_k(ranks_BTE if limit is None else limit.masked(ranks_BTE), top)[1]

    return partition.per_shard(found, axes.BATCH, axes.LENGTH)(jax.lax.stop_gradient(ranks_BTE))

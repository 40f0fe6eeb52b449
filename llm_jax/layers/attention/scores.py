"""Attention scores: scale, soft cap, bias and sinks.

Legend: B batch, T query length, S key length, N heads, R buckets of relative positions.
"""

import jax

from llm_jax.core.checks import check_positive_if_given
from llm_jax.core.configclass import configclass
from llm_jax.layers.positions.position import PositionBias
from llm_jax.layers.positions.relative_bias import LayerRelativeBiasConfig
from llm_jax.layers.sequence import SequenceInfo


@configclass
class ScoresConfig:
    """softcap(q k^T * scale) + bias, in float32."""

    scale: float | None = None
    """None: one over the square root of the head size (Vaswani et al. 2017, arXiv:1706.03762, eq. 1)."""
    softcap: float | None = None
    """c in c * tanh(score / c), which keeps scores between -c and c (Gemma Team 2024, arXiv:2408.00118, 2)."""
    bias: PositionBias | None = None
    """Bias that depends on the positions of query and key."""
    sinks: bool = False
    """Whether each head has an attention sink: one more learned score, which belongs to no token. The weights then sum
    to less than one, and a head may attend to nothing (gpt-oss, arXiv:2508.10925, 2.3)."""

    def __post_init__(self):
        check_positive_if_given(scale=self.scale, softcap=self.softcap)

    def parameters(self, heads: int) -> int:
        """Number of parameters that a layer has for its scores."""
        table = self.bias.parameters(heads) if isinstance(self.bias, LayerRelativeBiasConfig) else 0
        return table + self.sinks * heads

    def across(
        self, heads: int, queries: SequenceInfo, keys: SequenceInfo, bias_RN: jax.Array | None = None
    ) -> jax.Array | None:
        """Bias of queries against keys, float32 [B or 1, N, T, S]; None without one."""
        if self.bias is None:
            return None
        return self.bias.across(heads, queries.positions_BT, keys.positions_BT, bias_RN)

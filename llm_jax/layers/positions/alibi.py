"""Attention with linear biases (Press et al. 2022, arXiv:2108.12409, section 3).

Legend: B batch, T query length, S key length, N heads.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.checks import check_positive
from llm_jax.core.configclass import configclass
from llm_jax.layers.positions.position import PositionBias


@configclass
class ALiBiConfig(PositionBias):
    """A bias that lowers scores in proportion to distance, with one slope per head.

    With n heads, a power of two, head i has slope 2^(-8 i / n); other numbers of heads interleave the slopes of the
    next two powers of two, as the authors' code does.
    """

    factor: float = 1.0
    """All slopes are multiplied by this. Falcon divides its biased scores by sqrt(head size): 1 / sqrt(head size)."""

    def __post_init__(self):
        check_positive(factor=self.factor)

    def slopes(self, heads: int) -> np.ndarray:
        """[N] float32."""
        below = 2 ** math.floor(math.log2(heads))
        slopes = 2.0 ** (-8 / below * np.arange(1, below + 1))
        # Every second slope of twice as many heads, from the first one.
        between = 2.0 ** (-4 / below * np.arange(1, 2 * (heads - below), 2))
        return self.factor * np.concatenate([slopes, between]).astype(np.float32)

    def across(
        self, heads: int, queries_BT: jax.Array, keys_BS: jax.Array, bias_RN: jax.Array | None = None
    ) -> jax.Array:
        """Bias between positions, [B, N, T, S] float32.

        It is computed in the compiled function: with NumPy positions it would be computed while tracing and stored as a
        large constant.
        """
        queries_BT, keys_BS = jnp.asarray(queries_BT), jnp.asarray(keys_BS)
        distance_B1TS = jnp.abs(queries_BT[:, None, :, None] - keys_BS[:, None, None, :]).astype(jnp.float32)
        return distance_B1TS * -self.slopes(heads)[:, None, None]

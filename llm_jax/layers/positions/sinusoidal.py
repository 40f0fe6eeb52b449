"""Sinusoidal positional embeddings, added to the token embeddings.

Legend: B batch, T length, D width.
"""

import dataclasses

import jax
import jax.numpy as jnp

from llm_jax.core.checks import check, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.positions.position import AddedPosition


@configclass
class SinusoidalConfig(AddedPosition):
    """Sines of frequencies that fall from 1 to 1 / base in a geometric series, and their cosines (Vaswani et al. 2017,
    arXiv:1706.03762, 3.5)."""

    base: float = 10_000.0
    interleaved: bool = False
    """Whether a sine and its cosine are adjacent, as in the paper's formula. The paper's code has all sines before all
    cosines, which is the same up to the order of features."""

    def __post_init__(self):
        check_positive(base=self.base)

    def parameters(self, length: int, width: int) -> int:
        """0: nothing is learned."""
        return 0

    def build(self, length: int, width: int, precision: Precision, name: str) -> "Sinusoidal":
        return Sinusoidal(self, width, precision)


@dataclasses.dataclass(frozen=True)
class Sinusoidal:
    """positions [B, T] int32 -> [B, T, D] in the compute dtype."""

    config: SinusoidalConfig
    width: int
    precision: Precision

    def __post_init__(self):
        check(self.width % 2 == 0, f"width is {self.width}: it must be even, since sinusoidal positions are pairs")

    def __call__(self, positions_BT: jax.Array) -> jax.Array:
        frequencies = self.config.base ** (-jnp.arange(0, self.width, 2) / self.width)
        angles = positions_BT[..., None].astype(jnp.float32) * frequencies
        # [B, T, D / 2, 2] if interleaved, otherwise [B, T, 2, D / 2].
        pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1 if self.config.interleaved else -2)
        return pairs.reshape(*positions_BT.shape, self.width).astype(self.precision.dtype)

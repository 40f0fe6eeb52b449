"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864, section 3.2).

Legend: B batch, N heads, T length, H head size.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.checks import check_positive


@dataclasses.dataclass(frozen=True)
class RoPEConfig:
    """Rotates pairs (i, i + H/2) of each head by an angle that grows with the position."""

    base: float = 10_000.0
    """Pair i turns by position * base^(-2i/H)."""

    def __post_init__(self):
        check_positive(base=self.base)

    def rotate(self, x_BNTH: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Rotated x, same shape and type. Angles are float32: bfloat16 cannot tell position 256 from 257."""
        head_dim = x_BNTH.shape[-1]
        frequencies = self.base ** (-np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
        angles_B1Th = positions_BT[:, None, :, None].astype(jnp.float32) * frequencies
        cos, sin = jnp.cos(angles_B1Th).astype(x_BNTH.dtype), jnp.sin(angles_B1Th).astype(x_BNTH.dtype)
        left, right = jnp.split(x_BNTH, 2, axis=-1)
        return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)

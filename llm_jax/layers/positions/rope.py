"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864, section 3.2).

Legend: B batch, N heads, T length, H head size, h pairs of features.
"""

import dataclasses

import jax
import jax.numpy as jnp

from llm_jax.core.checks import check, check_positive
from llm_jax.layers.positions.rope_scaling import Scaling, Unscaled


@dataclasses.dataclass(frozen=True)
class RoPEConfig:
    """Rotates pairs (i, i + H/2) of each head by an angle that grows with the position."""

    base: float = 10_000.0
    """Pair i turns by position * base^(-2i/H)."""
    features: int | None = None
    """Leading features of each head that are rotated, in the place of H; None: all."""
    scaling: Scaling = Unscaled()
    """How the angles are changed for rows longer than those of pretraining."""

    def __post_init__(self):
        check_positive(base=self.base)
        check(
            self.features is None or (self.features > 0 and self.features % 2 == 0),
            f"features is {self.features}: rotary positions turn pairs, so it must be even and greater than 0",
        )

    def check_fits(self, head_dim: int) -> None:
        """ValueError unless heads of `head_dim` features have those that are rotated, in pairs."""
        rotated = self.features or head_dim
        check(
            rotated % 2 == 0,
            f"head_dim is {head_dim}: rotary positions turn pairs, so it must be even; change it or `position`",
        )
        check(
            rotated <= head_dim,
            f"position.features is {rotated} and head_dim is {head_dim}: no more can be rotated than there are",
        )

    def rotate(self, x_BNTH: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Rotated x, same shape and type. Angles are float32: bfloat16 cannot tell position 256 from 257."""
        features = x_BNTH.shape[-1] if self.features is None else self.features
        frequencies, magnitude = self.scaling.frequencies(self.base, features, positions_BT)
        angles_B1Th = positions_BT[:, None, :, None].astype(jnp.float32) * frequencies
        cos, sin = ((magnitude * turn(angles_B1Th)).astype(x_BNTH.dtype) for turn in (jnp.cos, jnp.sin))
        left, right, rest = jnp.split(x_BNTH, (features // 2, features), axis=-1)
        return jnp.concatenate([left * cos - right * sin, right * cos + left * sin, rest], axis=-1)

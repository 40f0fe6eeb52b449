"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864, section 3.2).

Legend: B batch, N heads, T length, H head size, h pairs of features.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.checks import check, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.layers.positions.position import RotaryPosition
from llm_jax.layers.positions.rope_scaling import Scaling, Unscaled
from llm_jax.layers.reuse import computed_once
from llm_jax.sharding.platforms import by_platform


@configclass
class RoPEConfig(RotaryPosition):
    """Rotates pairs (i, i + H/2) of each head by an angle that grows with the position."""

    base: float = 10_000.0
    """Pair i is rotated by the angle position * base^(-2i/H)."""
    features: int | None = None
    """Number of leading features of each head that are rotated, which replaces H; None: all."""
    scaling: Scaling = Unscaled()
    """Scaling of the angles for sequences longer than those of pretraining."""

    def __post_init__(self):
        check_positive(base=self.base)
        check(
            self.features is None or (self.features > 0 and self.features % 2 == 0),
            f"features is {self.features}: it must be even and greater than 0, since RoPE rotates pairs",
        )

    def check_fits(self, head_dim: int) -> None:
        """Raises ValueError unless the rotated features are even in number and at most `head_dim`."""
        rotated = self.features or head_dim
        check(
            rotated % 2 == 0,
            f"head_dim is {head_dim}: it must be even, since RoPE rotates pairs; change it or `position`",
        )
        check(
            rotated <= head_dim,
            f"position.features is {rotated} and head_dim is {head_dim}: features must not exceed head_dim",
        )

    def rotate(self, x_BNTH: jax.Array, positions_BT: jax.Array, lengths_BT: jax.Array | None = None) -> jax.Array:
        """Rotated x, with the same shape and dtype. Angles are float32: bfloat16 cannot distinguish 256 and 257.

        Args:
          lengths_BT: int32 [B, T] or [B, 1], length of each token's document, which some scalings read; None: the last
            position of a sequence determines its length.
        """
        features = x_BNTH.shape[-1] if self.features is None else self.features
        if lengths_BT is None:
            lengths_BT = jnp.max(positions_BT, axis=1, keepdims=True) + 1
        frequencies, magnitude = self.scaling.frequencies(self.base, features, lengths_BT)
        # [B, T or 1, h] -> [B, 1, T or 1, h], with an axis for the heads. `magnitude` multiplies queries and keys
        # alike, so scores get its square.
        frequencies = frequencies[:, None] if frequencies.ndim == 3 else frequencies
        angles_B1Th = positions_BT[:, None, :, None].astype(jnp.float32) * frequencies
        # Computed once for all heads, layers and both passes.
        cos, sin = (computed_once(magnitude * turn(angles_B1Th)).astype(x_BNTH.dtype) for turn in (jnp.cos, jnp.sin))
        return _turn(x_BNTH, cos, sin)


# The gradient is the inverse rotation: it needs cosine and sine only, and these get no gradients themselves.
@jax.custom_vjp
def _turn(x_BNTH: jax.Array, cos_B1Th: jax.Array, sin_B1Th: jax.Array) -> jax.Array:
    """x with its pairs rotated."""
    return by_platform(x_BNTH, cos_B1Th, sin_B1Th, tpu=_by_permutation, default=_by_halves)


def _turn_back(turn: tuple[jax.Array, jax.Array], dy_BNTH: jax.Array) -> tuple[jax.Array, None, None]:
    def of(formulation: Callable) -> Callable:
        # A rotation is linear in x, so that its pullback is the same at every point; dy has the right shape.
        return lambda dy, cos, sin: jax.vjp(lambda x: formulation(x, cos, sin), dy)[1](dy)[0]

    dx_BNTH = by_platform(dy_BNTH, *turn, tpu=of(_by_permutation), default=of(_by_halves))
    return dx_BNTH, None, None


_turn.defvjp(lambda x, cos, sin: (_turn(x, cos, sin), (cos, sin)), _turn_back)


def _by_halves(x_BNTH: jax.Array, cos_B1Th: jax.Array, sin_B1Th: jax.Array) -> jax.Array:
    half = cos_B1Th.shape[-1]
    left, right, rest = jnp.split(x_BNTH, (half, 2 * half), axis=-1)
    turned = [left * cos_B1Th - right * sin_B1Th, right * cos_B1Th + left * sin_B1Th]
    return jnp.concatenate([*turned, rest], axis=-1)


def _by_permutation(x_BNTH: jax.Array, cos_B1Th: jax.Array, sin_B1Th: jax.Array) -> jax.Array:
    """`_by_halves` on whole heads: a product with a permutation matrix swaps the halves. TPUs compute on 128 features
    at once, and with halves of heads half of these would be idle."""
    half, head_dim = cos_B1Th.shape[-1], x_BNTH.shape[-1]
    places = np.arange(head_dim)
    places = np.where(places < 2 * half, (places + half) % (2 * half), places)
    swap_HH = jnp.asarray(np.eye(head_dim)[places], x_BNTH.dtype)
    # The highest precision makes the permutation exact: by default TPUs round float32 operands to bfloat16.
    swapped = jnp.matmul(x_BNTH, swap_HH, precision=jax.lax.Precision.HIGHEST)
    # Features that are not rotated have cosine 1 and sine 0.
    rest = ((0, 0),) * 3 + ((0, head_dim - 2 * half),)
    cos = jnp.pad(jnp.concatenate([cos_B1Th, cos_B1Th], axis=-1), rest, constant_values=1)
    sin = jnp.pad(jnp.concatenate([-sin_B1Th, sin_B1Th], axis=-1), rest)
    return x_BNTH * cos + swapped * sin

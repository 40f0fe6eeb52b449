"""Rotary frequencies for sequences longer than those of pretraining.

Legend: B batch, T length, h pairs of features. `lengths_BT` is the length of each token's document (see
`SequenceInfo.lengths_BT`), int32 [B, T] or [B, 1].
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.checks import check, check_positive
from llm_jax.core.configclass import configclass


@configclass
class Unscaled:
    """Pair i of n features rotates by base^(-2i/n) per position."""

    def frequencies(self, base: float, features: int, lengths_BT: jax.Array) -> tuple[jax.Array | np.ndarray, float]:
        """Angle per position of each pair, in radians, float32 [h], or [B, T or 1, h] if it depends on the length; and
        the factor of cosine and sine."""
        return _plain(base, features), 1.0


@configclass
class LinearScaling:
    """Positions are divided by `factor` (Chen et al. 2023, arXiv:2306.15595)."""

    factor: float

    def __post_init__(self):
        check_positive(factor=self.factor)

    def frequencies(self, base: float, features: int, lengths_BT: jax.Array) -> tuple[jax.Array | np.ndarray, float]:
        """As `Unscaled.frequencies`."""
        return _plain(base, features) / np.float32(self.factor), 1.0


@configclass
class DynamicScaling:
    """The base grows with the length of the sequence beyond `original_length` ("dynamic NTK"; Peng et al. 2023,
    arXiv:2309.00071, B.2). Cached keys keep the angles with which they were written. Cached decoding beyond that length
    therefore differs from a full forward pass, in every implementation."""

    factor: float
    original_length: int

    def __post_init__(self):
        check_positive(factor=self.factor, original_length=self.original_length)

    def frequencies(self, base: float, features: int, lengths_BT: jax.Array) -> tuple[jax.Array | np.ndarray, float]:
        """As `Unscaled.frequencies`."""
        check(features > 2, f"{features} features are rotated: dynamic scaling requires at least 4")
        length_BT1 = jnp.maximum(lengths_BT, self.original_length).astype(jnp.float32)[..., None]
        # With this exponent the slowest pair, i = n / 2 - 1, slows down by exactly `growth`, and the fastest one not at
        # all.
        growth_BT1 = self.factor * length_BT1 / self.original_length - (self.factor - 1)
        exponent = np.arange(0, features, 2, dtype=np.float32) / features
        return (base * growth_BT1 ** (features / (features - 2))) ** -exponent, 1.0


@configclass
class Llama3Scaling:
    """The frequencies of slow pairs are divided by `factor`, those of fast pairs are kept, and those between are
    interpolated (Llama Team 2024, arXiv:2407.21783, 3.4.2, and the published code)."""

    factor: float = 8.0
    low: float = 1.0
    """Rotations within `original_length` below which a pair is slow."""
    high: float = 4.0
    """Rotations within `original_length` above which a pair is fast."""
    original_length: int = 8192

    def __post_init__(self):
        check_positive(factor=self.factor, low=self.low, original_length=self.original_length)
        check(self.high > self.low, f"high is {self.high} and low is {self.low}: high must be greater than low")

    def frequencies(self, base: float, features: int, lengths_BT: jax.Array) -> tuple[jax.Array | np.ndarray, float]:
        """As `Unscaled.frequencies`."""
        plain = _plain(base, features)
        # Rotations of each pair within the original length.
        turns = self.original_length * plain / (2 * math.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return (plain * (kept + (1 - kept) / self.factor)).astype(np.float32), 1.0


@configclass
class YaRNScaling:
    """`Llama3Scaling` with interpolation linear in the index of the pair instead of its rotations, and with scores
    multiplied by `magnitude` squared (Peng et al. 2023, arXiv:2309.00071, section 3)."""

    factor: float
    original_length: int
    fast: float = 32.0
    """Rotations within `original_length` above which the frequency of a pair is kept."""
    slow: float = 1.0
    """Rotations within `original_length` below which it is divided by the full factor."""
    magnitude: float | None = None
    """Factor of cosine and sine; None: 0.1 ln(factor) + 1 (section 3.4)."""
    truncate: bool = True
    """Whether the two limits are rounded outwards to whole indices of pairs."""

    def __post_init__(self):
        check_positive(factor=self.factor, original_length=self.original_length, slow=self.slow)
        check(self.fast > self.slow, f"fast is {self.fast} and slow is {self.slow}: fast must be greater than slow")

    def frequencies(self, base: float, features: int, lengths_BT: jax.Array) -> tuple[jax.Array | np.ndarray, float]:
        """As `Unscaled.frequencies`."""
        plain = _plain(base, features)
        first, last = (self._pair(turns, base, features) for turns in (self.fast, self.slow))
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        # features - 1, although there are only half as many pairs: as in the authors' code.
        first, last = max(first, 0), min(last, features - 1)
        # The lower bound, also of the authors' code, prevents a division by zero if both limits are the same pair.
        slowed = np.clip((np.arange(len(plain)) - first) / max(last - first, 1e-3), 0, 1)
        magnitude = 0.1 * math.log(self.factor) + 1 if self.magnitude is None else self.magnitude
        return (plain * (1 - slowed + slowed / self.factor)).astype(np.float32), magnitude

    def _pair(self, turns: float, base: float, features: int) -> float:
        """Index of the pair with `turns` rotations within the original length, as a real number."""
        # original_length * base^(-2 i / features) = 2 pi turns, solved for i.
        return features * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))


@configclass
class LongRoPEScaling:
    """Each pair has its own divisor, found by search: one set for sequences up to `original_length`, another beyond
    (Ding et al. 2024, arXiv:2402.13753). As with `DynamicScaling`, cached keys keep their angles."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_length: int
    magnitude: float = 1.0
    """Factor of cosine and sine."""

    def __post_init__(self):
        check_positive(original_length=self.original_length, magnitude=self.magnitude)
        check(
            len(self.short) == len(self.long),
            f"short has {len(self.short)} divisors and long has {len(self.long)}: both must have one per pair of "
            "features",
        )

    def frequencies(self, base: float, features: int, lengths_BT: jax.Array) -> tuple[jax.Array | np.ndarray, float]:
        """As `Unscaled.frequencies`."""
        check(
            len(self.short) == features // 2,
            f"rope scaling has {len(self.short)} divisors and {features} features are rotated: one per pair of "
            "features is required",
        )
        plain = _plain(base, features)
        beyond_BT1 = (lengths_BT > self.original_length)[..., None]
        divisors_BTh = jnp.where(beyond_BT1, np.asarray(self.long, np.float32), np.asarray(self.short, np.float32))
        return plain / divisors_BTh, self.magnitude


Scaling = Unscaled | LinearScaling | DynamicScaling | Llama3Scaling | YaRNScaling | LongRoPEScaling


def _plain(base: float, features: int) -> np.ndarray:
    return (base ** (-np.arange(0, features, 2, dtype=np.float32) / features)).astype(np.float32)

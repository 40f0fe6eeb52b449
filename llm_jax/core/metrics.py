"""Metrics are sums and counts, so that microbatches, devices and hosts combine exactly."""

from typing import Self

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Ratio:
    """A mean that has not been divided yet: float32 scalars `total` and `count`."""

    total: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array) -> Self:
        """Weighted mean of `values`, both of one shape, as float32 sums."""
        weights = weights.astype(jnp.float32)
        return cls(jnp.sum(values.astype(jnp.float32) * weights), jnp.sum(weights))

    def __add__(self, other: Self) -> Self:
        return Ratio(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> jax.Array:
        """total / count; 0 where nothing was counted."""
        return self.total / jnp.where(self.count == 0, 1, self.count)


def add(left: dict[str, Ratio], right: dict[str, Ratio]) -> dict[str, Ratio]:
    """Adds two metric dictionaries of equal keys."""
    return jax.tree.map(jnp.add, left, right)


def means(metrics: dict[str, Ratio]) -> dict[str, float]:
    """Fetches the metrics from the device and divides."""
    return {name: float(ratio.total) / (float(ratio.count) or 1.0) for name, ratio in jax.device_get(metrics).items()}

"""Metrics are sums and counts, so that microbatches, devices and processes combine exactly.

A metric is a pytree of arrays. Two metrics are added leaf by leaf. `compute(name)` returns the values computed from the
sums, keyed by the names under which they are recorded.
"""

from typing import Protocol, Self, TypeVar

import flax.struct
import jax
import jax.numpy as jnp


class Metric(Protocol):
    """A pytree of sums, and the values computed from them."""

    def compute(self, name: str) -> dict[str, float]:
        """Host-side values, from sums fetched from the device, keyed `name` or `name/...`."""
        ...


Metrics = dict[str, Metric]
Kind = TypeVar("Kind", bound=Metric)


@flax.struct.dataclass
class Ratio:
    """A mean as numerator and denominator: float32 scalars `total` and `count`."""

    total: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array) -> Self:
        """Weighted mean of `values` as float32 sums. `values` and `weights` must have the same shape."""
        weights = weights.astype(jnp.float32)
        return cls(jnp.sum(values.astype(jnp.float32) * weights), jnp.sum(weights))

    def __add__(self, other: Self) -> Self:
        return type(self)(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> jax.Array:
        """total / count; 0 if the count is 0."""
        return self.total / jnp.where(self.count == 0, 1, self.count)

    def compute(self, name: str) -> dict[str, float]:
        """The mean."""
        return {name: float(self.total) / (float(self.count) or 1.0)}


def metric_of(metrics: Metrics, name: str, kind: type[Kind]) -> Kind:
    """The metric `name`. Raises ValueError if it is not of type `kind`."""
    metric = metrics[name]
    if not isinstance(metric, kind):
        raise ValueError(f"metric {name!r} is of type {type(metric).__name__}: it must be a {kind.__name__}")
    return metric


def add(left: Metrics, right: Metrics) -> Metrics:
    """Adds two metric dictionaries with equal keys."""
    return jax.tree.map(jnp.add, left, right)


def means(metrics: Metrics) -> dict[str, float]:
    """Fetches the metrics from the device and computes their values."""
    fetched = jax.device_get(metrics)
    return {name: value for key in fetched for name, value in fetched[key].compute(key).items()}

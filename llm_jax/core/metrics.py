"""Metrics are sums and counts, so that microbatches, devices and hosts combine exactly.

A metric is a tree of arrays, of which two are added leaf by leaf, with `compute(name)`: the values computed from the
sums, by the names under which they are recorded.
"""

from typing import Protocol, Self, TypeVar

import flax.struct
import jax
import jax.numpy as jnp


class Metric(Protocol):
    """Sums, and the values computed from them."""

    def compute(self, name: str) -> dict[str, float]:
        """Host-side values, from sums fetched from the device, keyed `name` or `name/...`."""
        ...


Metrics = dict[str, Metric]
Kind = TypeVar("Kind", bound=Metric)


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
        return type(self)(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> jax.Array:
        """total / count; 0 where nothing was counted."""
        return self.total / jnp.where(self.count == 0, 1, self.count)

    def compute(self, name: str) -> dict[str, float]:
        """The mean."""
        return {name: float(self.total) / (float(self.count) or 1.0)}


def metric_of(metrics: Metrics, name: str, kind: type[Kind]) -> Kind:
    """The metric `name`. ValueError if it is of another type than `kind`."""
    metric = metrics[name]
    if not isinstance(metric, kind):
        raise ValueError(f"metric {name!r} is of type {type(metric).__name__}: it must be a {kind.__name__}")
    return metric


def add(left: Metrics, right: Metrics) -> Metrics:
    """Adds two metric dictionaries of equal keys."""
    return jax.tree.map(jnp.add, left, right)


def means(metrics: Metrics) -> dict[str, float]:
    """Fetches the metrics from the device and divides."""
    fetched = jax.device_get(metrics)
    return {name: value for key in fetched for name, value in fetched[key].compute(key).items()}

"""Routing statistics of MoE layers, as sums over the tokens of a batch, and the metrics and losses computed from them.

Legend: B batch, E experts.
"""

from typing import Any, Self

import flax.struct
import jax
import numpy as np

Sums = dict[str, jax.Array]
"""Inputs of a batch loss by name: float32 sums over the tokens of the batch."""

_OF_LAYERS = ("max_load", "load_entropy", "max_importance", "entropy", "dropped")


@flax.struct.dataclass
class RoutingStatistics:
    """Routing statistics of a MoE layer: float32 sums over the tokens of a batch, padding excluded. Those of a stack
    have a leading axis for its layers.

    Attributes:
      tokens: number of tokens.
      load_E: number of tokens that chose each expert, or that it picked, whether served or not.
      importance_E: scores of each expert, normalised per token; 0 without scores.
      entropy: entropy of each token's scores, in nats; 0 without scores.
      dropped: number of choices that exceeded expert capacity.
      unserved: number of tokens that no expert served.
      rate: by which a step changes the bias of the layer's router against its load; None without such a bias.
    """

    tokens: jax.Array
    load_E: jax.Array
    importance_E: jax.Array
    entropy: jax.Array
    dropped: jax.Array
    unserved: jax.Array
    rate: float | None = flax.struct.field(pytree_node=False, default=None)


@flax.struct.dataclass
class BatchLosses:
    """Losses of a layer over all tokens of a batch. The sums of a stack have a leading axis for its layers.

    Attributes:
      sums: inputs of each of the losses.
      losses: configs of the type `BatchLoss`.
    """

    sums: tuple[Sums, ...]
    losses: tuple[Any, ...] = flax.struct.field(pytree_node=False)

    @property
    def total(self) -> jax.Array | np.ndarray:
        """The weighted sum of the losses of a batch with these sums, over layers too: a scalar."""
        parts = ((loss.weight * loss.of(sums)).sum() for loss, sums in zip(self.losses, self.sums, strict=True))
        return sum(parts, np.zeros((), np.float32))


@flax.struct.dataclass
class RoutingAux:
    """Auxiliary output of a MoE layer. That of a stack has a leading axis for its layers.

    Attributes:
      loss_B: float32 weighted sum of the losses of each sequence.
      batch: losses over the batch.
      statistics: routing statistics.
    """

    loss_B: jax.Array
    batch: BatchLosses
    statistics: RoutingStatistics


@flax.struct.dataclass
class BalanceLoss:
    """Metric of the balance losses of all layers of a model.

    Attributes:
      rows: float32, sum of the losses of sequences, each weighted by the number of its targets.
      count: float32, number of targets.
      layers: losses over the batch by the path of a block.
    """

    rows: jax.Array
    count: jax.Array
    layers: dict[str, BatchLosses]

    def part_of(self, whole: Self) -> jax.Array:
        """This part's contribution to the losses of the batch `whole`, weighted by the number of its targets. Values
        and gradients of all parts sum to those of the batch, because the gradient by a part's sums is evaluated at the
        sums of the batch."""
        # The value is the sum of the batch; the derivative by the part's own sum is 1.
        at = jax.tree.map(
            lambda all, own: jax.lax.stop_gradient(all) + (own - jax.lax.stop_gradient(own)),
            *(one.layers for one in (whole, self)),
        )
        # Value: `loss` for each target of this part. Gradient: `loss` for each target of the batch, because its
        # gradient is only that of this part's sums.
        loss, count = sum(layer.total for layer in at.values()), jax.lax.stop_gradient(whole.count)
        return self.count * loss + (count - self.count) * (loss - jax.lax.stop_gradient(loss))

    def compute(self, name: str) -> dict[str, float]:
        """The mean over targets. Losses over the batch are computed from the accumulated sums."""
        of_batch = sum(float(layer.total) for layer in self.layers.values())
        return {name: float(self.rows) / (float(self.count) or 1.0) + of_batch}


@flax.struct.dataclass
class RoutingMetric:
    """Metric of the routing statistics of all MoE layers of a model.

    Attributes:
      layers: by the path of a block in the parameters, such as 'stack/segment_0/block_1'.
    """

    layers: dict[str, RoutingStatistics]

    def compute(self, name: str) -> dict[str, float]:
        """The mean of each metric over all layers, then the metrics of each layer except `unserved`.

        max_load: load of the most loaded expert over the mean load. entropy: mean entropy of a token's scores, in nats.
        dropped: fraction of choices that no expert served. unserved: fraction of tokens that no expert served.
        load_entropy: entropy of the experts' fractions of all choices, in nats; for a uniform load, log of their
        number. max_importance: as max_load, of scores. Without scores there is neither max_importance nor entropy.
        """
        means, layers = {}, {}
        for path, statistics in self.layers.items():
            for figure, values in _figures(statistics).items():
                means.setdefault(figure, []).extend(values)
                digits = len(str(len(values) - 1))
                for layer, value in enumerate(values if figure in _OF_LAYERS else ()):
                    layers[f"{name}/{figure}/{path}/{layer:0{digits}}"] = float(value)
        return {f"{name}/{figure}": float(np.mean(values)) for figure, values in means.items()} | layers


def _figures(statistics: RoutingStatistics) -> dict[str, np.ndarray]:
    """The metrics of each layer."""
    tokens, chosen = np.maximum(statistics.tokens, 1), np.maximum(np.sum(statistics.load_E, axis=-1), 1)
    shares_E = statistics.load_E / chosen[..., None]
    load_entropy = -np.sum(shares_E * np.log(np.where(shares_E > 0, shares_E, 1)), axis=-1)
    figures = {"max_load": _peak(statistics.load_E), "load_entropy": load_entropy}
    if np.any(statistics.importance_E):
        figures |= {"max_importance": _peak(statistics.importance_E), "entropy": statistics.entropy / tokens}
    return figures | {"dropped": statistics.dropped / chosen, "unserved": statistics.unserved / tokens}


def _peak(given_E: jax.Array | np.ndarray) -> np.ndarray:
    """Maximum over experts divided by the mean."""
    mean = np.mean(given_E, axis=-1)
    return np.max(given_E, axis=-1) / np.where(mean == 0, 1, mean)

"""What layers of experts did with the tokens of a batch, as sums, and the figures that are told of them.

Legend: B batch, E experts.
"""

import flax.struct
import jax
import numpy as np

_OF_LAYERS = ("max_load", "load_entropy", "max_importance", "entropy", "dropped")


@flax.struct.dataclass
class Tally:
    """What a layer of experts did with the real tokens of a batch: float32 sums over them. A stack's has a leading axis
    for its layers.

    Attributes:
      tokens: number of tokens.
      load_E: number of tokens that chose each expert, or that it picked, whether it served them or not.
      importance_E: scores given to each expert, each token's adding up to one; 0 without scores.
      entropy: of each token's scores, in nats; 0 without scores.
      dropped: choices that no expert served, for want of capacity.
      unserved: tokens that no expert served.
      rate: by which an update moves the bias of the layer's router against its load; None without such a bias.
    """

    tokens: jax.Array
    load_E: jax.Array
    importance_E: jax.Array
    entropy: jax.Array
    dropped: jax.Array
    unserved: jax.Array
    rate: float | None = flax.struct.field(pytree_node=False, default=None)


@flax.struct.dataclass
class Report:
    """What a layer of experts tells of a batch. A stack's has a leading axis for its layers.

    Attributes:
      loss_B: float32 balance losses of each row, weighted and added up.
      tally: what it did.
    """

    loss_B: jax.Array
    tally: Tally


@flax.struct.dataclass
class Tallies:
    """A metric: the tallies of all layers of a model.

    Attributes:
      layers: by the path of a block in the parameters, such as 'stack/segment_0/block_1'.
    """

    layers: dict[str, Tally]

    def told(self, name: str) -> dict[str, float]:
        """The mean over all layers of each of their figures, and all but `unserved` of each layer after them.

        max_load: tokens of the expert with most of them over the mean of all. entropy: mean of a token's scores, in
        nats. dropped: share of choices that no expert served. unserved: share of tokens that none did. load_entropy:
        of the shares that experts have of all choices, in nats, log of their number where they are even.
        max_importance: as max_load, of scores. Without scores there is neither importance nor entropy.
        """
        means, layers = {}, {}
        for path, tally in self.layers.items():
            for figure, values in _figures(tally).items():
                means.setdefault(figure, []).extend(values)
                digits = len(str(len(values) - 1))
                for layer, value in enumerate(values if figure in _OF_LAYERS else ()):
                    layers[f"{name}/{figure}/{path}/{layer:0{digits}}"] = float(value)
        return {f"{name}/{figure}": float(np.mean(values)) for figure, values in means.items()} | layers


def _figures(tally: Tally) -> dict[str, np.ndarray]:
    """Of each layer."""
    tokens, chosen = np.maximum(tally.tokens, 1), np.maximum(np.sum(tally.load_E, axis=-1), 1)
    shares_E = tally.load_E / chosen[..., None]
    load_entropy = -np.sum(shares_E * np.log(np.where(shares_E > 0, shares_E, 1)), axis=-1)
    figures = {"max_load": _peak(tally.load_E), "load_entropy": load_entropy}
    if np.any(tally.importance_E):
        figures |= {"max_importance": _peak(tally.importance_E), "entropy": tally.entropy / tokens}
    return figures | {"dropped": tally.dropped / chosen, "unserved": tally.unserved / tokens}


def _peak(given_E: np.ndarray) -> np.ndarray:
    """What the expert with most of it has over the mean."""
    mean = np.mean(given_E, axis=-1)
    return np.max(given_E, axis=-1) / np.where(mean == 0, 1, mean)

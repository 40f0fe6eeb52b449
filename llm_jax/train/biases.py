"""Router biases that are updated from the expert load instead of a gradient.

Legend: L layers, E experts.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from llm_jax.core.metrics import Metrics
from llm_jax.layers.ffn.routing_statistics import RoutingMetric, RoutingStatistics


def moved(params: Any, former: Any, metrics: Metrics) -> Any:
    """Parameters after a step, with router biases set by `BiasUpdate` from the former biases and the load of the whole
    batch. The optimizer's update of these biases is discarded."""
    biases: dict[str, jax.Array] = {}
    flat: dict[str, Any] = flatten_dict(former, sep="/")
    for tallies in (metric for metric in metrics.values() if isinstance(metric, RoutingMetric)):
        for path, tally in tallies.layers.items():
            if tally.rate is not None:
                name = f"{path}/ffn/router/bias"
                biases[name] = _moved(flat[name], tally, tally.rate)
    return unflatten_dict(flatten_dict(params, sep="/") | biases, sep="/") if biases else params


def _moved(bias: jax.Array, statistics: RoutingStatistics, rate: float) -> jax.Array:
    """The updated bias: [L, E], or [E] if all layers share it."""
    load = statistics.load_E if bias.ndim == statistics.load_E.ndim else jnp.sum(statistics.load_E, axis=0)
    # The sign, so that a step does not depend on how uneven the load is (Wang et al. 2024, arXiv:2408.15664, algorithm
    # 1).
    return bias + rate * jnp.sign(jnp.mean(load, axis=-1, keepdims=True) - load)

"""Routing metrics are computed for each layer and over all layers."""

import jax
import numpy as np
import pytest

from llm_jax.core.metrics import add, means
from llm_jax.layers.ffn.routing_statistics import RoutingMetric, RoutingStatistics


def _tally(load_LE, importance_LE, tokens=10.0, entropy=5.0, dropped=0.0, unserved=0.0):
    layers = len(load_LE)
    of = lambda value: np.full(layers, value, np.float32)  # noqa: E731
    load_LE, importance_LE = np.array(load_LE, np.float32), np.array(importance_LE, np.float32)
    return RoutingStatistics(of(tokens), load_LE, importance_LE, of(entropy), of(dropped), of(unserved), rate=0.1)


def _entropy(*shares):
    return -sum(share * np.log(share) for share in shares)


def test_figures_are_told_of_sums():
    one = _tally([[6, 2, 2, 10], [5, 5, 5, 5]], [[1, 2, 3, 4], [2, 2, 3, 3]], dropped=2, unserved=1)
    metrics = {"experts": RoutingMetric({"stack/segment_1/block_0": one})}
    told = means(add(metrics, metrics))
    assert told == pytest.approx(
        {
            "experts/max_load": 1.5,
            "experts/max_load/stack/segment_1/block_0/0": 2.0,
            "experts/max_load/stack/segment_1/block_0/1": 1.0,
            "experts/load_entropy": (_entropy(0.3, 0.1, 0.1, 0.5) + np.log(4)) / 2,
            "experts/load_entropy/stack/segment_1/block_0/0": _entropy(0.3, 0.1, 0.1, 0.5),
            "experts/load_entropy/stack/segment_1/block_0/1": np.log(4),
            "experts/max_importance": (1.6 + 1.2) / 2,
            "experts/max_importance/stack/segment_1/block_0/0": 1.6,
            "experts/max_importance/stack/segment_1/block_0/1": 1.2,
            "experts/entropy": 0.5,
            "experts/entropy/stack/segment_1/block_0/0": 0.5,
            "experts/entropy/stack/segment_1/block_0/1": 0.5,
            "experts/dropped": 0.1,
            "experts/dropped/stack/segment_1/block_0/0": 0.1,
            "experts/dropped/stack/segment_1/block_0/1": 0.1,
            "experts/unserved": 0.1,
        }
    )


def test_layers_are_named_so_that_they_sort_and_weigh_alike():
    many, few = _tally([[1, 1]] * 12, [[1, 1]] * 12), _tally([[2, 0]], [[1, 1]])
    told = RoutingMetric({"stack/segment_0/block_0": many, "stack/segment_1/block_0": few}).compute("experts")
    layers = [name for name in told if name.startswith("experts/max_load/stack/segment_0")]
    assert layers == sorted(layers) and len(layers) == 12
    assert told["experts/max_load"] == pytest.approx((12 * 1 + 2) / 13)


_OF_LAYERS = ("max_load", "load_entropy", "dropped")
_WITHOUT_SCORES = (*_OF_LAYERS, *(f"{name}/block/0" for name in _OF_LAYERS), "unserved")


def test_without_scores_there_is_neither_importance_nor_entropy():
    told = RoutingMetric({"block": _tally([[1, 3]], [[0, 0]], entropy=0)}).compute("experts")
    assert set(told) == {f"experts/{name}" for name in _WITHOUT_SCORES}


def test_experts_without_tokens_and_one_with_all_have_no_entropy():
    assert RoutingMetric({"block": _tally([[0, 6, 0]], [[0, 0, 0]])}).compute("experts")["experts/load_entropy"] == 0


def test_nothing_counted_is_no_division_by_zero():
    told = RoutingMetric({"block": _tally([[0, 0]], [[0, 0]], tokens=0, entropy=0)}).compute("experts")
    assert all(np.isfinite(list(told.values())))


def test_the_rate_is_no_number_of_the_batch():
    assert len(jax.tree.leaves(_tally([[1]], [[1]]))) == 6

"""The record of the gradient norms of a run."""

import types

import numpy as np
import pytest

from llm_jax.train import GradientNormsConfig

NORMS = {"embed": {"table": np.float32(3.0)}, "stack": {"query": np.float32(4.0)}}


def test_every_few_updates_the_norm_of_each_parameter_is_recorded_by_its_path():
    found = []
    run = types.SimpleNamespace(record=lambda kind, step, **values: found.append((kind, step, values)))
    hook = GradientNormsConfig(every=2).build(run)
    for step in range(1, 6):
        hook.on_gradient_norms(step, NORMS)
        assert not hook.due(step), "the device would wait"
    values = {"embed/table": 3.0, "stack/query": 4.0}
    assert found == [("gradient_norms", 2, values), ("gradient_norms", 4, values)]


def test_an_interval_is_positive():
    with pytest.raises(ValueError, match="every is 0"):
        GradientNormsConfig(every=0)

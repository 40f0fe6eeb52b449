"""Norms of gradients, drawn."""

import numpy as np
import pytest

from llm_jax.analysis import gradients
from llm_jax.analysis.runs import load_run


@pytest.fixture
def run(make_run, train_record):
    paths = {"embed/table": 4.0, "stack/segment_0/block_0/mixer/query/kernel": 1.0}
    paths |= {"stack/segment_0/block_1/mixer/query/kernel": 2.0, "stack/segment_1/block_0/mixer/query/bias": 2.0}
    records = [train_record(step, 3.0, gradient_norm=5.0 + step) for step in (1, 2)]
    records += [{"kind": "gradient_norms", "step": step, "time": 1.0, **paths} for step in (1, 2)]
    return load_run(make_run("run", records))


def test_parameters_of_one_name_are_one_group_over_all_layers(run):
    found = gradients.groups(run.parameter_norms)
    assert {name: norms.tolist() for name, norms in found.items()} == {"embed": [4.0] * 2, "mixer/query": [3.0] * 2}
    drawn = {line.get_label(): line.get_data() for line in gradients.parameter_norms_figure(run).axes[0].lines}
    np.testing.assert_array_equal(drawn["mixer/query"], [[1, 2], [3, 3]])


def test_many_parameters_are_at_most_twelve_groups_whose_norms_add_up_to_the_whole():
    names = [f"{part}/{number}" for part in ("mixer", "ffn") for number in range(7)]
    norms = {f"stack/segment_0/block_0/{name}/kernel": np.full(3, 1.0 + at) for at, name in enumerate(names)}
    found = gradients.groups(norms | {"step": np.arange(3.0), "time": np.arange(3.0)})
    assert list(found) == ["mixer", "ffn"]
    total = np.sqrt(sum(np.square(group) for group in found.values()))
    np.testing.assert_allclose(total, np.sqrt(sum(np.square(norm) for norm in norms.values())))


def test_the_norm_of_the_whole_gradient_is_drawn_against_steps(run):
    raw, mean = gradients.gradient_norm_figure([run]).axes[0].lines
    np.testing.assert_array_equal(raw.get_data(), [[1, 2], [6, 7]])
    np.testing.assert_array_equal(mean.get_data(), raw.get_data())

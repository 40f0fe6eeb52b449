"""Learned positions are rows of a table."""

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.dtypes import MIXED, Precision
from llm_jax.layers.initialisers import Normal
from llm_jax.layers.positions.learned import LearnedPositionsConfig


def test_each_position_gets_its_row():
    table = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    layer = LearnedPositionsConfig().build(6, 3, Precision(), None)
    positions = np.array([[0, 1, 2], [5, 0, 5]])
    np.testing.assert_array_equal(layer.apply({"params": {"table": table}}, positions), table[positions])


def test_positions_may_begin_at_a_later_row():
    table = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    layer = LearnedPositionsConfig(offset=2).build(6, 3, Precision(), None)
    positions = np.array([[0, 1, 5]])
    np.testing.assert_array_equal(layer.apply({"params": {"table": table}}, positions), table[positions + 2])


def test_table_has_its_size_scale_axes_and_type():
    config = LearnedPositionsConfig(Normal(0.5))
    made, variables = config.build(300, 40, MIXED, None).init_with_output(
        jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
    )
    table = variables["params"]["table"]
    assert made.dtype == jnp.bfloat16 and table.value.dtype == jnp.float32
    assert table.names == ("positions", "embed")
    assert table.value.size == config.parameters(300, 40)
    np.testing.assert_allclose(np.std(table.value), 0.5, rtol=0.03)

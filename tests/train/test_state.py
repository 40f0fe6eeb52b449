"""The state is a pytree that knows its own layout."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax.core import trees
from llm_jax.models import count
from llm_jax.models.build import abstract_parameters
from llm_jax.models.transformer import Transformer
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.rules import ShardingConfig
from llm_jax.train.state import TrainState, initial_state, state_shardings, weights_for_use
from tests.helpers import tiny


@pytest.fixture(scope="module")
def make():
    model = Transformer(tiny.tiny_llama())
    return jax.jit(lambda seed: initial_state(model, optax.adamw(1e-2), seed, ema=True))


def test_a_fresh_state_is_decided_by_the_seed(make):
    first, again, other = make(0), make(0), make(1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    name = "stack/segment_0/block_0/mixer/query/kernel"
    assert not np.array_equal(
        dict(trees.named_leaves(first.params))[name], dict(trees.named_leaves(other.params))[name]
    )


def test_the_average_starts_at_the_weights_in_memory_of_its_own(make):
    state = make(0)
    jax.tree.map(np.testing.assert_array_equal, state.ema, state.params)
    pairs = zip(jax.tree.leaves(state.ema), jax.tree.leaves(state.params), strict=True)
    # A donated step would refuse a buffer that it is given twice.
    assert all(one.unsafe_buffer_pointer() != other.unsafe_buffer_pointer() for one, other in pairs)


def test_without_an_average_none_is_kept():
    model, optimizer = Transformer(tiny.tiny_gpt2()), optax.sgd(0.1)
    state = jax.eval_shape(lambda: initial_state(model, optimizer, 0, ema=False))
    assert state.ema is None
    assert trees.count(state.params) == count.parameters(model.config)
    assert state.step.dtype == jnp.int32


def test_abstract_parameters_match_the_real_ones_and_their_axes(make):
    shapes, axes = abstract_parameters(Transformer(tiny.tiny_llama()))
    assert shapes == jax.eval_shape(make, 0).params
    ranks = jax.tree.map(lambda shape, words: len(shape.shape) == len(words), shapes, axes)
    assert all(jax.tree.leaves(ranks))


def test_the_layout_covers_the_whole_state(make):
    layout = Layout.of(ShardingConfig(), jax.devices()[:1])
    abstract = jax.eval_shape(make, 0)
    _, axes = abstract_parameters(Transformer(tiny.tiny_llama()))
    places = state_shardings(abstract, axes, layout)
    assert jax.tree.structure(places) == jax.tree.structure(abstract)


def test_the_average_is_used_where_there_is_one_else_what_the_optimizer_says():
    weights = weights_for_use(lambda opt_state, params: params * 10)
    params = jnp.ones(2, jnp.bfloat16)
    assert (weights(TrainState(0, params, None)).params == 10).all()
    averaged = weights(TrainState(0, params, None, ema=jnp.full(2, 3.0))).params
    assert averaged.dtype == jnp.bfloat16 and (averaged == 3).all()

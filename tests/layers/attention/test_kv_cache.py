"""A cache is an explicit pytree that remembers what was written where."""

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.layers.attention.kv_cache import Cache, KeyValues, empty_slots
from llm_jax.layers.attention.masks import Causal
from llm_jax.layers.sequence import SequenceInfo


def test_entries_land_in_their_slots_and_leave_the_others():
    old = jnp.full((2, 1, 5, 3), 7.0)
    new = jnp.arange(2 * 2 * 3, dtype=jnp.float32).reshape(2, 1, 2, 3)
    state = jax.jit(lambda slot: KeyValues(old, -old).write(new, 2 * new, slot))(2)
    np.testing.assert_array_equal(state.k_BKSH[:, :, 2:4], new)
    np.testing.assert_array_equal(state.v_BKSH[:, :, 2:4], 2 * new)
    untouched = np.array([0, 1, 4])
    assert (state.k_BKSH[:, :, untouched] == 7).all() and (state.v_BKSH[:, :, untouched] == -7).all()


def test_entries_take_the_type_of_the_cache():
    empty = jnp.zeros((1, 1, 2, 1), jnp.bfloat16)
    state = KeyValues(empty, empty).write(jnp.ones((1, 1, 1, 1)), jnp.ones((1, 1, 1, 1)), jnp.int32(0))
    assert state.k_BKSH.dtype == state.v_BKSH.dtype == jnp.bfloat16


def test_empty_slots_are_seen_by_nothing():
    query = SequenceInfo(jnp.array([[100]]), jnp.array([[1]]))
    assert not Causal().across(query, empty_slots(1, 4)).any()


def test_placing_tokens_records_where_they_stand():
    cache = Cache(layers=(), slots=empty_slots(1, 5), length=jnp.int32(2))
    placed = cache.place(SequenceInfo(jnp.array([[8, 9]]), jnp.array([[3, 3]])))
    np.testing.assert_array_equal(placed.slots.positions_BT, [[0, 0, 8, 9, 0]])
    np.testing.assert_array_equal(placed.slots.segment_ids_BT, [[0, 0, 3, 3, 0]])
    assert placed.length == 2


def test_places_given_once_stand_for_all_rows():
    cache = Cache(layers=(), slots=empty_slots(2, 3), length=jnp.int32(1))
    placed = cache.place(SequenceInfo(jnp.array([[8, 9]]), jnp.array([[3, 3], [4, 4]])))
    np.testing.assert_array_equal(placed.slots.positions_BT, [[0, 8, 9]] * 2)
    np.testing.assert_array_equal(placed.slots.segment_ids_BT, [[0, 3, 3], [0, 4, 4]])

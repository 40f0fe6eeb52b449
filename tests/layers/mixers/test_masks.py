"""Which key a query may see, against two loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layers.mixers.masks import Bidirectional, Causal, Placement

SEGMENTS = np.array([[1, 1, 2, 2, 2, 0, 0], [3, 3, 3, 3, 3, 3, 3]])
POSITIONS = np.array([[0, 1, 0, 1, 2, 0, 0], [0, 1, 2, 3, 4, 5, 6]])
PACKED = Placement(jnp.asarray(POSITIONS), jnp.asarray(SEGMENTS))
PLAIN = Placement(jnp.asarray(np.broadcast_to(np.arange(7), (2, 7))))


def _allowed(causal, segments):
    rows, length = segments.shape
    allowed = np.zeros((rows, length, length), bool)
    for row in range(rows):
        for query in range(length):
            for key in range(length):
                same = segments[row, query] == segments[row, key] != 0
                allowed[row, query, key] = same and (key <= query or not causal)
    return allowed


@pytest.mark.parametrize("mask", [Causal(), Bidirectional()])
def test_packed_rows(mask):
    expected = _allowed(isinstance(mask, Causal), SEGMENTS)
    np.testing.assert_array_equal(mask.allowed(PACKED, PACKED), expected)


@pytest.mark.parametrize("mask", [Causal(), Bidirectional()])
def test_rows_of_one_document(mask):
    expected = _allowed(isinstance(mask, Causal), np.ones((2, 7)))
    np.testing.assert_array_equal(np.broadcast_to(mask.allowed(PLAIN, PLAIN), expected.shape), expected)


def test_queries_among_the_slots_of_a_cache():
    # One query at position 2 of the second document; its slot comes after padding.
    query = Placement(jnp.array([[2], [6]]), jnp.array([[2], [3]]))
    slots = np.array([[0, 1, 0, 1, 0, 0, 2], [0, 1, 2, 3, 4, 5, 6]]), np.array([[1, 1, 2, 2, 0, 0, 2], [3] * 7])
    allowed = Causal().allowed(query, Placement(*map(jnp.asarray, slots)))
    np.testing.assert_array_equal(allowed[0], [[False, False, True, True, False, False, True]])
    assert allowed[1].all()


@pytest.mark.parametrize("mask", [Causal(), Bidirectional()])
@pytest.mark.parametrize("length", [1, 7])
def test_pairs_are_the_mean_number_of_keys_seen(mask, length):
    allowed = _allowed(isinstance(mask, Causal), np.ones((1, length)))
    assert mask.pairs(length) == allowed.sum() / length

"""Beginnings of documents, against a walk along the row."""

import jax.numpy as jnp
import numpy as np

from llm_jax.layers.recurrent.document_starts import documents
from llm_jax.layers.sequence import SequenceInfo

SEGMENTS = np.array([[0, 0, 1, 1, 2, 0, 2, 3], [1, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]])


def _walk(segments, before):
    starts, last = np.zeros(segments.shape, bool), before.copy()
    for row, column in np.ndindex(segments.shape):
        found = segments[row, column]
        if found:
            starts[row, column], last[row] = found != last[row], found
    return starts, last


def test_documents_begin_where_the_last_real_token_was_of_another():
    sequence = SequenceInfo(jnp.zeros(SEGMENTS.shape, jnp.int32), jnp.asarray(SEGMENTS))
    for before in ([0, 0, 0], [1, 1, 1], [3, 2, 0]):
        found = documents(sequence, jnp.asarray(before, jnp.int32))
        starts, last = _walk(SEGMENTS, np.array(before))
        np.testing.assert_array_equal(found.starts_BT, starts)
        np.testing.assert_array_equal(found.last_B, last)
        np.testing.assert_array_equal(found.real_BT, SEGMENTS != 0)


def test_a_row_without_segments_is_one_document_whatever_its_positions():
    found = documents(SequenceInfo(jnp.asarray([[0, 1, 0, 1], [5, 6, 7, 8]])))
    np.testing.assert_array_equal(found.starts_BT, [[True, False, False, False]] * 2)
    np.testing.assert_array_equal(found.last_B, [1, 1])
    assert np.asarray(found.real_BT).all()

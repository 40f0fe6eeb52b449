"""Which key a query may see, against two loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layers.attention.masks import Bidirectional, BidirectionalWindow, Causal, Permuted, PrefixCausal
from llm_jax.layers.attention.pairs import Pairs
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.sequence import SequenceInfo

SEGMENTS = np.array([[1, 1, 2, 2, 2, 0, 0], [3, 3, 3, 3, 3, 3, 3]])
POSITIONS = np.array([[0, 1, 0, 1, 2, 0, 0], [0, 1, 2, 3, 4, 5, 6]])
PACKED = SequenceInfo(jnp.asarray(POSITIONS), jnp.asarray(SEGMENTS))
PLAIN = SequenceInfo(jnp.asarray(np.broadcast_to(np.arange(7), (2, 7))))
CASES = {
    "causal": Causal(),
    "window": Causal(3),
    "wide window": Causal(90),
    "bidirectional": Bidirectional(),
    "bidirectional window": BidirectionalWindow(2),
    "wide bidirectional window": BidirectionalWindow(90),
    "itself alone": BidirectionalWindow(0),
    "permuted, without an order": Permuted(),
    "prefix, without a prefix": PrefixCausal(),
}
MASKS = pytest.mark.parametrize("mask", CASES.values(), ids=CASES)


def _within(mask, row, rows=slice(None), columns=slice(None)):
    """Which tokens `columns` of a row its tokens `rows` see, as the kernels ask."""
    return Pairs(mask, row, None, ScoresConfig()).allowed(rows, columns)


def _seen(mask, segments):
    """Which key (last axis) each query (middle axis) of a row sees."""
    rows, length = segments.shape
    seen = np.zeros((rows, length, length), bool)
    for row in range(rows):
        for query in range(length):
            for key in range(length):
                same = segments[row, query] == segments[row, key] != 0
                if isinstance(mask, Causal):
                    same = same and key <= query and (mask.window is None or query - key < mask.window)
                if isinstance(mask, PrefixCausal):
                    same = same and key <= query
                if isinstance(mask, BidirectionalWindow):
                    same = same and abs(query - key) <= mask.reach
                seen[row, query, key] = same
    return seen


@MASKS
def test_packed_rows(mask):
    np.testing.assert_array_equal(_within(mask, PACKED), _seen(mask, SEGMENTS))


@MASKS
def test_rows_of_one_document(mask):
    expected = _seen(mask, np.ones((2, 7)))
    np.testing.assert_array_equal(np.broadcast_to(_within(mask, PLAIN), expected.shape), expected)


@MASKS
@pytest.mark.parametrize("sequence", [PACKED, PLAIN], ids=["packed", "plain"])
def test_a_part_of_a_row_is_that_part_of_the_whole(mask, sequence):
    whole = np.broadcast_to(_within(mask, sequence), (2, 7, 7))
    for rows, columns in ((slice(2, 5), slice(0, 5)), (slice(0, 1), slice(3, 7)), (slice(6, 7), slice(1, 2))):
        part = _within(mask, sequence, rows, columns)
        expected = whole[:, rows, columns]
        np.testing.assert_array_equal(np.broadcast_to(part, expected.shape), expected)


@MASKS
@pytest.mark.parametrize("sequence", [PACKED, PLAIN], ids=["packed", "plain"])
def test_the_program_may_compute_which_part(mask, sequence):
    whole = np.broadcast_to(_within(mask, sequence), (2, 7, 7))
    part = jax.jit(lambda start: _within(mask, sequence, start + jnp.arange(3), start - 1 + jnp.arange(2)))(3)
    np.testing.assert_array_equal(np.broadcast_to(part, (2, 3, 2)), whole[:, 3:6, 2:4])


def test_a_place_past_the_last_is_the_last():
    part = PACKED.part(jnp.array([5, 6, 7, 90]))
    np.testing.assert_array_equal(part.positions_BT, POSITIONS[:, [5, 6, 6, 6]])
    np.testing.assert_array_equal(part.segment_ids_BT, SEGMENTS[:, [5, 6, 6, 6]])
    assert PLAIN.part(slice(2, 5)).segment_ids_BT is None


@MASKS
def test_nothing_is_seen_outside_the_columns(mask):
    # The longest prefix, since columns do not depend on prefixes.
    whole = np.broadcast_to(_within(mask, PLAIN.replace(prefix_BT=np.ones((2, 7), bool))), (2, 7, 7))
    for rows in (slice(0, 3), slice(2, 5), slice(6, 7)):
        columns = mask.columns(rows, 7)
        outside = np.ones(7, bool)
        outside[columns] = False
        assert not whole[:, rows][..., outside].any()
        assert whole[:, rows][..., columns.stop - 1].any()  # and they are no wider than need be


@MASKS
def test_across_a_cache_it_is_the_mask_of_the_whole_row(mask):
    # The last three tokens of each row asked again, with the whole row in the cache.
    last = slice(4, 7)
    queries = SequenceInfo(PACKED.positions_BT[:, last], PACKED.segment_ids_BT[:, last])
    np.testing.assert_array_equal(mask.across(queries, PACKED), _seen(mask, SEGMENTS)[:, last])


def test_slots_need_not_be_in_order():
    # One query at position 2 of the second document; its own slot comes after padding.
    query = SequenceInfo(jnp.array([[2]]), jnp.array([[2]]))
    slots = SequenceInfo(jnp.array([[0, 1, 0, 1, 0, 3, 2]]), jnp.array([[1, 1, 2, 2, 0, 2, 2]]))
    causal = [[[False, False, True, True, False, False, True]]]
    np.testing.assert_array_equal(Causal().across(query, slots), causal)
    np.testing.assert_array_equal(Bidirectional().across(query, slots)[0, 0], [0, 0, 1, 1, 0, 1, 1])


@MASKS
@pytest.mark.parametrize("length", [1, 7])
def test_pairs_are_the_mean_number_of_keys_seen(mask, length):
    assert mask.pairs(length) == _seen(mask, np.ones((1, length))).sum() / length


# Two documents, padding, and for each document tokens that ask, of which one asks for a token that is given.
ORDERED = SequenceInfo(
    positions_BT=jnp.array([[0, 1, 2, 0, 1, 0, 2, 0, 0, 1]]),
    segment_ids_BT=jnp.array([[1, 1, 1, 2, 2, 0, 1, 1, 2, 0]]),
    order_BT=jnp.array([[2, 0, 1, 1, 1, 0, 1, 2, 1, 0]]),
    targets_BT=jnp.array([[False] * 6 + [True] * 4]),
)


def _seen_in_order(sequence):
    """Which key each token of the first row sees, by the words of SequenceInfo."""
    position, document, order, asks = (
        np.asarray(array)[0]
        for array in (sequence.positions_BT, sequence.segment_ids_BT, sequence.order_BT, sequence.targets_BT)
    )
    seen = np.zeros((len(position), len(position)), bool)
    for query in range(len(position)):
        for key in range(len(position)):
            if asks[key] or document[key] != document[query] or document[key] == 0:
                continue
            itself = not asks[query] and position[query] == position[key]
            seen[query, key] = itself or order[key] == 0 or order[key] < order[query]
    return seen


def test_what_tokens_see_in_an_order():
    expected = _seen_in_order(ORDERED)
    np.testing.assert_array_equal(Permuted().across(ORDERED, ORDERED)[0], expected)
    rows, columns = slice(2, 8), slice(1, 5)
    part = Permuted().across(ORDERED.part(rows), ORDERED.part(columns))[0]
    np.testing.assert_array_equal(part, expected[rows, columns])
    # Spelled out: the given token is seen by its document alone, those that ask by none, and not what they ask for.
    np.testing.assert_array_equal(np.flatnonzero(expected[:, 1]), [0, 1, 2, 6, 7])
    assert not expected[:, 6:].any() and expected[7].tolist() == [False, True, True] + [False] * 7
    # Of two tokens of one rank neither sees the other, and the first to be predicted has nothing to see.
    assert expected[3].nonzero()[0] == [3] and expected[4].nonzero()[0] == [4] and not expected[8].any()


def test_a_prefix_is_seen_by_its_whole_document():
    lengths = {1: 2, 2: 1, 3: 4}  # of the prefix of each document of SEGMENTS
    prefix = np.array(
        [
            [at < lengths.get(one, 0) for at, one in zip(*row, strict=True)]
            for row in zip(POSITIONS, SEGMENTS, strict=True)
        ]
    )
    place = PACKED.replace(prefix_BT=jnp.asarray(prefix))
    expected = _seen(Causal(), SEGMENTS)
    for row, query, key in np.ndindex(expected.shape):
        same = SEGMENTS[row, query] == SEGMENTS[row, key] != 0
        expected[row, query, key] |= same and POSITIONS[row, key] < lengths[SEGMENTS[row, key]]
    np.testing.assert_array_equal(_within(PrefixCausal(), place), expected)
    rows, columns = slice(1, 6), slice(2, 7)
    np.testing.assert_array_equal(_within(PrefixCausal(), place, rows, columns), expected[:, rows, columns])
    # Other masks do not read it.
    np.testing.assert_array_equal(_within(Causal(), place), _seen(Causal(), SEGMENTS))


def test_lengths_are_those_of_documents_without_padding():
    positions = jnp.array([[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]])
    segments = jnp.array([[1, 1, 1, 2, 2, 0], [0, 3, 3, 0, 3, 0]])
    np.testing.assert_array_equal(
        SequenceInfo(positions, segments).lengths_BT, [[3, 3, 3, 2, 2, 0], [0, 4, 4, 0, 4, 0]]
    )
    # Without segment ids a row is one document; a call that continues it counts from its start.
    np.testing.assert_array_equal(SequenceInfo(jnp.array([[0, 1, 2], [7, 8, 9]])).lengths_BT, [[3], [10]])

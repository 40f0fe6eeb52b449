"""Orders of prediction from transformers' masks."""

import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.interop.permutation import permuted
from llm_jax.layers.attention.masks import Permuted
from llm_jax.layers.sequence import SequenceInfo

T = 6
REAL = np.array([[0, 1, 1, 1, 1, 1]])
PLACE = SequenceInfo(jnp.arange(T)[None], jnp.asarray(REAL), types_BT=jnp.array([[0, 0, 0, 1, 1, 1]]))
RANKS = np.array([0, 0, 2, 1, 0, 3])


def _mask(ranks=RANKS):
    """1 where token i may not see token j: those that are not given, from their own rank on."""
    return ((ranks[None, :] > 0) & (ranks[None, :] >= ranks[:, None])).astype(np.float32)[None]


def _mapping(*targets):
    return np.eye(T, dtype=np.float32)[list(targets)][None]


def _seen(placement):
    return np.asarray(Permuted().across(placement, placement))[0]


@pytest.mark.parametrize("ranks", [RANKS, np.zeros(T, int), np.array([0, 3, 1, 5, 4, 2]), np.array([0, 1, 2, 0, 1, 2])])
def test_tokens_see_what_the_mask_lets_them_and_themselves(ranks):
    placement = permuted(PLACE, _mask(ranks))
    real = REAL[0] == 1
    expected = ((_mask(ranks)[0] == 0) | np.eye(T, dtype=bool)) & real & real[:, None]
    np.testing.assert_array_equal(_seen(placement)[real], expected[real])
    assert placement.targets_BT is None


def test_what_padding_says_does_not_matter():
    mask = _mask()
    mask[:, 0], mask[:, :, 0] = 1, 0
    np.testing.assert_array_equal(permuted(PLACE, mask).order_BT[0, 1:], permuted(PLACE, _mask()).order_BT[0, 1:])


def test_targets_stand_after_the_tokens_where_those_stand_that_they_ask_for():
    placement = permuted(PLACE, _mask(), _mapping(5, 2, 1))
    for field in ("positions_BT", "segment_ids_BT", "types_BT", "order_BT"):
        row = np.asarray(getattr(placement, field))[0]
        np.testing.assert_array_equal(row[T:], row[[5, 2, 1]], err_msg=field)
    np.testing.assert_array_equal(placement.targets_BT[0], [False] * T + [True] * 3)
    seen = _seen(placement)
    assert not seen[:, T:].any()
    np.testing.assert_array_equal(seen[T:, 1:T], _mask()[0][[5, 2, 1]][:, 1:] == 0)


def test_without_masks_a_placement_stays_what_it_is():
    assert permuted(PLACE) is PLACE
    placement = permuted(PLACE, target_mapping=_mapping(3))
    assert placement.order_BT is None and _seen(placement)[T, 3]


def _changed(token, other, value):
    mask = _mask()
    mask[0, token, other] = value
    return mask


MIXED_UP = r"no order in sequences \[0\]"


@pytest.mark.parametrize(
    ("perm_mask", "target_mapping", "message"),
    [
        # Token 2 sees 3, which sees 5: through 3 it would know 5 in the second layer.
        (_changed(3, 5, 0), None, MIXED_UP),
        (_changed(5, 3, 1), None, MIXED_UP),
        (_mask() / 2, None, r"perm_mask has shape \(1, 6, 6\): .* hold 0 and 1 only"),
        (_mask()[:, :, 1:], None, r"perm_mask has shape \(1, 6, 5\): it must be \[1, any number, 6\]"),
        (_mask(), _mapping(5)[0], r"target_mapping has shape \(1, 6\)"),
        (_mask(), _mapping(5) + _mapping(4), "target_mapping is not one-hot"),
        (_mask(), _mapping(5, 5), "target_mapping is not one-hot: .* no two at the same"),
        (_mask(), 0 * _mapping(5), "target_mapping is not one-hot"),
        (_mask(), _mapping(0), "target_mapping is 1 at padding"),
        (_changed(5, 5, 0), _mapping(5), r"perm_mask\[0, 5, 5\] is 0"),
        (_mask(np.array([0, 3, 1, 5, 4, 2])), _mapping(5, 2), "lets target 2 of sequence 0 attend to nothing"),
    ],
)
def test_masks_that_say_no_order_are_refused(perm_mask, target_mapping, message):
    with pytest.raises(ValueError, match=message):
        permuted(PLACE, perm_mask, target_mapping)

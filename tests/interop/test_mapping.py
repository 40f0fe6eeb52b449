"""A tensor and its leaves: cut where it should be, put together again to the bit."""

import numpy as np
import pytest

from llm_jax.interop.mapping import Leaf, Tensor

SIZES = {"d": 6, "n": 4, "k": 2, "g": 2, "h": 4, "f": 5}
GENERATOR = np.random.default_rng(0)
TENSORS = {
    "one": Tensor("q", "(n h) d", (Leaf("q", "d n h"),), SIZES),
    "neighbours": Tensor("q", "(n h) d", (Leaf("q", "d n h", neighbours=2),), SIZES),
    "halves": Tensor("qkv", "d (s n h)", tuple(Leaf(name, "d (s n) h") for name in "qkv"), SIZES),
    "by head": Tensor("qkv", "(n s h) d", tuple(Leaf(name, "d (s n) h") for name in "qkv"), SIZES),
    "shares": Tensor("qkv", "(s h) d", (Leaf("q", "d s h", share=4), Leaf("k", "d s h", share=2)), SIZES),
    "groups": Tensor("qkv", "(k s h) d", (Leaf("q", "d (k s) h", share=2), Leaf("k", "d (k s) h")), SIZES),
    "vector": Tensor("b", "(n s h)", (Leaf("q", "(s n) h"), Leaf("k", "(s n) h")), SIZES),
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_there_and_back(tensor: Tensor):
    array = GENERATOR.normal(size=tensor.shape)
    leaves = tensor.split(array)
    assert [leaf.shape for leaf in leaves] == [tensor.leaf_shape(leaf) for leaf in tensor.leaves]
    assert sum(leaf.size for leaf in leaves) == array.size
    np.testing.assert_array_equal(tensor.join(leaves), array)


def test_a_head_of_a_fused_tensor_comes_out_whole():
    array = GENERATOR.normal(size=(4, 3, 4, 6))  # [heads, which, features, width]
    _, keys, _ = Tensor("qkv", "(n s h) d", tuple(Leaf(name, "d (s n) h") for name in "qkv"), SIZES).split(
        array.reshape(-1, 6)
    )
    np.testing.assert_array_equal(keys, array[:, 1].transpose(2, 0, 1))


def test_shares_are_cut_at_their_ends():
    array = GENERATOR.normal(size=(6, 4, 6))
    queries, keys = TENSORS["shares"].split(array.reshape(-1, 6))
    np.testing.assert_array_equal(queries, array[:4].transpose(2, 0, 1))
    np.testing.assert_array_equal(keys, array[4:].transpose(2, 0, 1))


def test_groups_are_cut_within_each_key():
    array = GENERATOR.normal(size=(2, 3, 4, 6))  # [keys, two queries and the key, features, width]
    queries, keys = TENSORS["groups"].split(array.reshape(-1, 6))
    np.testing.assert_array_equal(queries, array[:, :2].reshape(4, 4, 6).transpose(2, 0, 1))
    np.testing.assert_array_equal(keys, array[:, 2].transpose(2, 0, 1))


def test_neighbours_become_halves():
    leaf = Leaf("q", "d h", neighbours=4)
    np.testing.assert_array_equal(leaf.permuted(np.arange(6)[None])[0], [0, 2, 1, 3, 4, 5])
    np.testing.assert_array_equal(leaf.permuted(leaf.permuted(np.arange(6)[None]), inverse=True)[0], np.arange(6))


def test_neighbours_lie_along_a_cut_that_goes_through_heads():
    leaves = (Leaf("plain", "d n s", share=3), Leaf("turned", "d n s", share=4, neighbours=4))
    array = GENERATOR.normal(size=(4, 7, 6))  # [heads, features, width]
    tensor = Tensor("q", "(n s) d", leaves, SIZES)
    plain, turned = tensor.split(array.reshape(-1, 6))
    np.testing.assert_array_equal(plain, array[:, :3].transpose(2, 0, 1))
    np.testing.assert_array_equal(turned, array[:, [3, 5, 4, 6]].transpose(2, 0, 1))
    np.testing.assert_array_equal(tensor.join([plain, turned]), array.reshape(-1, 6))


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"tensor q has shape \[6, 16\] and config.json requires \[16, 6\]"):
        TENSORS["one"].split(np.zeros((6, 16)))

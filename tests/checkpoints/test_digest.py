import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.checkpoints.digest import digests


def _digest(array) -> int:
    return digests({"x": jnp.asarray(array)})["x"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool"])
def test_a_change_of_any_one_element_changes_the_digest(dtype):
    array = np.random.default_rng(0).integers(0, 2, (5, 7)).astype(dtype)
    found = {_digest(array)}
    for index in np.ndindex(array.shape):
        changed = array.copy()
        changed[index] = 1 - changed[index]
        found.add(_digest(changed))
    assert len(found) == 1 + array.size


def test_every_bit_of_an_element_counts():
    array = np.float32([[0.5, -2.0]])
    bits = array.view(np.uint32)
    found = {_digest((bits ^ np.uint32([[1 << bit, 0]])).view(np.float32)) for bit in range(32)}
    assert len(found | {_digest(array)}) == 33


def test_order_counts():
    array = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    assert (
        len({_digest(array), _digest(array[::-1]), _digest(np.roll(array, 1, 1)), _digest(array.reshape(4, 6).T)}) == 4
    )


def test_digests_are_named_by_path_and_independent_of_the_tree_around():
    x = jnp.arange(4.0)
    assert digests({"a": {"b": x}, "c": (x + 1,)}) == {"a/b": _digest(x), "c/0": _digest(x + 1)}


def test_a_random_key_is_refused():
    with pytest.raises(ValueError, match="rng is a random key.*not stored"):
        digests({"rng": jax.random.key(0)})

"""Paths, counts and sizes."""

import jax
import jax.numpy as jnp

from llm_jax.core import trees


def test_names_counts_and_bytes():
    tree = {"b": (jnp.zeros((2, 3)), {"x": jnp.zeros(4, jnp.bfloat16)}), "a": jnp.zeros((), jnp.int32)}
    assert [name for name, _ in trees.named_leaves(tree)] == ["a", "b/0", "b/1/x"]
    assert trees.count(tree) == 6 + 4 + 1
    assert trees.size_bytes(tree) == 24 + 8 + 4


def test_shapes_serve_as_well_as_arrays():
    shapes = jax.eval_shape(lambda: {"a": jnp.zeros((3, 5), jnp.bfloat16)})
    assert trees.count(shapes) == 15
    assert trees.size_bytes(shapes) == 30

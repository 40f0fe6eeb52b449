import jax
import jax.numpy as jnp
import pytest

from llm_jax.optim.layouts import Layout, layouts


@pytest.mark.parametrize(
    "words, stack, rows, columns",
    [
        (("embed", "mlp"), 0, 1, 1),
        (("layers", "embed", "mlp"), 1, 1, 1),
        (("layers", "embed", "heads", "head_dim"), 1, 1, 2),
        (("layers", "heads", "head_dim", "embed"), 1, 2, 1),
        (("layers", "experts", "mlp", "embed"), 2, 1, 1),
        (("layers", "blocks", "head_dim", "head_dim"), 2, 1, 1),
        (("layers", "embed", "experts"), 1, 1, 1),
        (("layers", "latent", "heads", "head_dim"), 1, 1, 2),
    ],
)
def test_a_kernel_is_a_stack_of_matrices_from_inputs_to_outputs(words, stack, rows, columns):
    layout = Layout("block/kernel", words)
    assert layout.is_matrix and not layout.is_table
    assert layout.stack + layout.rows + layout.columns == tuple(range(len(words)))
    assert (len(layout.stack), len(layout.rows), len(layout.columns)) == (stack, rows, columns)


@pytest.mark.parametrize(
    "path, words",
    [
        ("norm/scale", ("layers", "norm")),
        ("query/bias", ("layers", "heads", "head_dim")),
        ("query_norm/scale", ("layers", "heads", "head_dim")),
        ("expert/bias", ("layers", "experts", "mlp")),
        ("decay_gate/bias", ("layers", "blocks", "head_dim")),
        ("norm/scale", ("norm",)),
        ("gain", ("layers",)),
        ("gain", ()),
    ],
)
def test_vectors_are_no_matrices_however_they_are_stacked(path, words):
    assert not Layout(path, words).is_matrix


TABLES = [
    ("vocab", "embed"),
    ("embed", "vocab"),
    ("positions", "embed"),
    ("types", "embed"),
    ("embed", "classes"),
    ("embed", "routes"),
]


@pytest.mark.parametrize("words", TABLES)
def test_tables_are_matrices_of_their_own_kind(words):
    layout = Layout("embed/table", words)
    assert layout.is_matrix and layout.is_table


def test_layouts_follow_the_tree():
    params = {"a": {"kernel": jnp.zeros((2, 3))}, "b": {"bias": jax.ShapeDtypeStruct((3,), jnp.float32)}}
    tree = layouts(params, {"a": {"kernel": ("embed", "mlp")}, "b": {"bias": ("mlp",)}})
    assert tree == {"a": {"kernel": Layout("a/kernel", ("embed", "mlp"))}, "b": {"bias": Layout("b/bias", ("mlp",))}}


@pytest.mark.parametrize(
    "axes, message",
    [
        ({"a": ("embed",)}, "parameter a of shape \\(2, 3\\) has axes \\('embed',\\)"),
        ({"b": ("embed", "mlp")}, "differ at \\['a', 'b'\\]"),
        ({"a": ("embed", "mlp"), "b": ("mlp",)}, "differ at \\['b'\\]"),
        ({"a": "embed"}, "logical axes of a are 'embed': they must be a tuple"),
    ],
)
def test_refuses_axes_of_another_tree(axes, message):
    with pytest.raises(ValueError, match=message):
        layouts({"a": jnp.zeros((2, 3))}, axes)


def test_refuses_no_parameters():
    with pytest.raises(ValueError, match="no parameters"):
        layouts({}, {})

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from llm_jax.layers.roles import ParameterBox, Role
from llm_jax.optim.matrix_layouts import MatrixLayout, layouts


@pytest.mark.parametrize(
    "logical_axes, stack, rows, columns",
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
def test_a_kernel_is_a_stack_of_matrices_from_inputs_to_outputs(logical_axes, stack, rows, columns):
    layout = MatrixLayout("block/kernel", logical_axes, Role.MATRIX)
    assert layout.stack + layout.rows + layout.columns == tuple(range(len(logical_axes)))
    assert (len(layout.stack), len(layout.rows), len(layout.columns)) == (stack, rows, columns)


VECTORS = {Role.NORM, Role.SCALE, Role.BIAS, Role.BALANCE, Role.RATE, Role.VECTOR}


@pytest.mark.parametrize("role", Role)
def test_the_role_tells_vectors_from_matrices_however_they_are_named_and_stacked(role):
    # A bias of heads and a projection of heads may have the same axes.
    assert MatrixLayout("a/kernel", ("layers", "heads", "head_dim"), role).is_matrix == (role not in VECTORS)


def box(shape, logical_axes, role):
    return ParameterBox(jax.ShapeDtypeStruct(shape, jnp.float32), logical_axes, role=role)


def test_layouts_follow_the_tree():
    kernel, bias = box((2, 3), ("embed", "mlp"), Role.MATRIX), box((3,), ("mlp",), Role.BIAS)
    assert layouts({"a": {"kernel": kernel}, "b": {"bias": bias}}) == {
        "a": {"kernel": MatrixLayout("a/kernel", ("embed", "mlp"), Role.MATRIX)},
        "b": {"bias": MatrixLayout("b/bias", ("mlp",), Role.BIAS)},
    }


@pytest.mark.parametrize(
    "parameter, message",
    [
        (box((2, 3), ("embed",), Role.MATRIX), "parameter a of shape \\(2, 3\\) has axes \\('embed',\\)"),
        (box((2, 3), ("embed", "mpl"), Role.MATRIX), "parameter a has axes .*'mpl'"),
        (
            box((2, 3), ("layers", "embed"), Role.EXPERT),
            "parameter a has role 'expert' and axes \\('layers', 'embed'\\)",
        ),
        (box((3,), ("mlp",), Role.TABLE), "parameter a has role 'table'"),
        (nn.LogicallyPartitioned(jnp.zeros(3), ("mlp",)), "parameter a has no role"),
        (jnp.zeros(3), "parameter a has no role"),
    ],
)
def test_refuses_parameters_that_are_not_described(parameter, message):
    with pytest.raises(ValueError, match=message):
        layouts({"a": parameter})


def test_refuses_no_parameters():
    with pytest.raises(ValueError, match="no parameters"):
        layouts({})

"""What each device is given of arrays that are laid out by logical words. Only shapes: the meshes have no devices."""

import flax.linen as nn
import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from llm_jax.sharding import axes
from llm_jax.sharding.local import per_device
from llm_jax.sharding.rules import Both, FullySharded, TensorParallel

WORDS = (axes.BATCH, axes.HEADS, None)
X = jax.ShapeDtypeStruct((16, 4, 6), "float32")


def _shapes(x, calls=1):
    """Shapes that a function run `calls` times within itself is given, and that of its result."""
    seen = []

    def function(x):
        seen.append(x.shape)
        return per_device(function, [WORDS], WORDS)(x) if len(seen) < calls else x

    out = jax.eval_shape(per_device(function, [WORDS], WORDS), x)
    return seen, out.shape


@pytest.mark.parametrize("calls", [1, 2])
def test_every_device_has_its_rows_and_its_heads(calls):
    table = Both(FullySharded(), TensorParallel()).table()
    mesh = AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    with jax.sharding.use_abstract_mesh(mesh), nn.logical_axis_rules(tuple(table.items())):
        assert _shapes(X, calls) == ([(4, 2, 6)] * calls, X.shape)


def test_without_a_mesh_it_is_the_function():
    assert _shapes(X) == ([X.shape], X.shape)

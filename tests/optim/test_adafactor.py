import jax
import numpy as np
import optax
import pytest

from llm_jax.layers.roles import Role
from llm_jax.optim.adafactor import scale_by_adafactor
from llm_jax.optim.matrix_layouts import MatrixLayout

WIDTH, HEADS, HEAD_DIM, LAYERS = 12, 2, 5, 3


def normal(name, *shape):
    return np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)


def directions(transformation, gradients, params):
    state, update = jax.jit(transformation.init)(params), jax.jit(transformation.update)
    for index in range(4):
        updates, state = update(jax.tree.map(lambda g, i=index: g * np.cos(i + g), gradients), state, params)
    return jax.device_get((updates, state))


@pytest.mark.parametrize("min_size, relative, threshold", [(4, True, 1.0), (4, False, None), (100, True, 0.5)])
def test_on_a_matrix_and_a_vector_it_is_optax(min_size, relative, threshold):
    params = {"kernel": normal("kernel", WIDTH, 8), "scale": normal("scale", WIDTH)}
    gradients = {"kernel": normal("gradient", WIDTH, 8), "scale": normal("other gradient", WIDTH)}
    layouts = {
        "kernel": MatrixLayout("kernel", ("embed", "mlp"), Role.MATRIX),
        "scale": MatrixLayout("scale", ("norm",), Role.NORM),
    }
    ours, _ = directions(scale_by_adafactor(layouts, 0.8, threshold, min_size, relative), gradients, params)
    reference = optax.adafactor(
        min_dim_size_to_factor=min_size, multiply_by_parameter_scale=relative, clipping_threshold=threshold
    )
    theirs, _ = directions(reference, gradients, params)
    for name in params:
        np.testing.assert_allclose(ours[name], -theirs[name], rtol=1e-5)


def test_heads_are_factored_as_one_matrix_per_layer():
    logical_axes = ("layers", "embed", "heads", "head_dim")
    params, gradient = normal("p", LAYERS, WIDTH, HEADS, HEAD_DIM), normal("gr", LAYERS, WIDTH, HEADS, HEAD_DIM)
    layout = MatrixLayout("q/kernel", logical_axes, Role.MATRIX)
    ours, state = directions(scale_by_adafactor(layout, 0.8, 1.0, 4, True), gradient, params)
    assert state.row.shape == (LAYERS, WIDTH, 1, 1)
    assert state.column.shape == (LAYERS, 1, HEADS, HEAD_DIM)
    assert not jax.tree.leaves(state.full)

    reference = optax.adafactor(min_dim_size_to_factor=4)
    for layer in range(LAYERS):
        flat = directions(reference, gradient[layer].reshape(WIDTH, -1), params[layer].reshape(WIDTH, -1))[0]
        np.testing.assert_allclose(ours[layer].reshape(WIDTH, -1), -flat, rtol=1e-5)
    whole = directions(reference, gradient, params)[0]
    assert np.abs(np.asarray(ours + whole)).max() > 1e-2


def test_an_optimizer_state_is_small_where_matrices_are_large():
    params = normal("p", LAYERS, 64, 32)
    layout = MatrixLayout("up/kernel", ("layers", "embed", "mlp"), Role.MATRIX)
    state = scale_by_adafactor(layout, 0.8, 1.0, 16, True).init(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == LAYERS * (64 + 32) + 1

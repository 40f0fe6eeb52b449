import jax
import numpy as np
import optax
import pytest

from llm_jax.layers.roles import ParameterBox, Role
from llm_jax.optim.matrix_layouts import MatrixLayout
from llm_jax.optim.muon import is_orthogonalised, scale_by_muon
from llm_jax.optim.optimizers import AdamConfig, MuonConfig

WIDTH, HEADS, HEAD_DIM, LAYERS = 16, 2, 12, 3
KERNELS = {
    "query": (("layers", "embed", "heads", "head_dim"), (LAYERS, WIDTH, HEADS, HEAD_DIM), (WIDTH, HEADS * HEAD_DIM)),
    "out": (("layers", "heads", "head_dim", "embed"), (LAYERS, HEADS, HEAD_DIM, WIDTH), (HEADS * HEAD_DIM, WIDTH)),
    "up": (("layers", "embed", "mlp"), (LAYERS, WIDTH, 40), (WIDTH, 40)),
}


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def newton_schulz(matrix, iterations):
    """Jordan's quintic iteration, in float64."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(iterations):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def first_direction(name, matched_rms, nesterov=True, iterations=5):
    logical_axes, shape, _ = KERNELS[name]
    gradient = normal(len(name), *shape)
    layout = MatrixLayout(f"{name}/kernel", logical_axes, Role.MATRIX)
    transformation = scale_by_muon({name: {"kernel": layout}}, 0.95, nesterov, iterations, matched_rms)
    tree = {name: {"kernel": gradient}}
    updates = jax.jit(lambda: transformation.update(tree, transformation.init(tree))[0])()
    return gradient, np.asarray(updates[name]["kernel"])


@pytest.mark.parametrize("iterations", [3, 5])
@pytest.mark.parametrize("name", KERNELS)
def test_each_layers_matrix_is_orthogonalised_by_itself(name, iterations):
    gradient, direction = first_direction(name, None, iterations=iterations)
    inputs, outputs = KERNELS[name][2]
    for layer in range(LAYERS):
        matrix = np.asarray(gradient[layer], np.float64).reshape(inputs, outputs)
        wanted = newton_schulz(matrix, iterations) * np.sqrt(max(1, outputs / inputs))
        np.testing.assert_allclose(direction[layer].reshape(inputs, outputs), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", KERNELS)
def test_matched_updates_have_one_root_mean_square_for_all_shapes(name):
    direction = first_direction(name, 0.2)[1]
    for layer in range(LAYERS):
        values = np.linalg.svd(np.asarray(direction[layer]).reshape(KERNELS[name][2]), compute_uv=False)
        assert values.max() / values.min() < 2
        assert np.sqrt(np.mean(np.square(direction[layer]))) == pytest.approx(0.2, rel=0.25)


def test_only_maps_between_hidden_features_are_orthogonalised():
    # Whatever its name and axes, the role decides.
    taken = {role for role in Role if is_orthogonalised(MatrixLayout("a/kernel", ("embed", "mlp"), role))}
    assert taken == {Role.MATRIX, Role.EXPERT}


def test_the_rest_goes_to_adam_at_its_own_rate():
    params = {"table": normal(1, 7, WIDTH), "kernel": normal(2, WIDTH, 8)}
    boxed = {
        "table": ParameterBox(params["table"], ("vocab", "embed"), role=Role.EMBEDDING),
        "kernel": ParameterBox(params["kernel"], ("embed", "mlp"), role=Role.MATRIX),
    }
    gradients = jax.tree.map(lambda x: x + 1, params)

    def updates(peak_lr):
        config = MuonConfig(peak_lr=0.1, adam=AdamConfig(peak_lr=peak_lr, b2=0.99), clip_norm=None, weight_decay=0.3)
        transformation = config.build(10, boxed)
        return jax.jit(lambda: transformation.update(gradients, transformation.init(params), params)[0])()

    own, shared = updates(0.02), updates(None)
    adamw = optax.adamw(0.02, b1=0.9, b2=0.99, weight_decay=0.3)
    wanted, _ = adamw.update(gradients, adamw.init(params), params)
    np.testing.assert_allclose(own["table"], wanted["table"], rtol=1e-5)
    np.testing.assert_allclose(shared["table"], 5 * wanted["table"], rtol=1e-5)
    np.testing.assert_array_equal(own["kernel"], shared["kernel"])
    assert np.abs(np.asarray(own["kernel"] - wanted["kernel"])).max() > 1e-3

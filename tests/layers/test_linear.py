"""The one matrix layer: the same as einsum, with the initial scale its config says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.dtypes import MIXED, Precision
from llm_jax.layers.initialisers import FanIn, Normal
from llm_jax.layers.linear import BlockDiagonal, LinearLayer, contract
from llm_jax.optim.matrix_layouts import layouts
from llm_jax.sharding import partition
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.partition import Layout as Sharded
from llm_jax.sharding.platforms import tracing_for
from llm_jax.sharding.rules import ContextParallel, ShardingConfig

SIZES = dict(zip("BTDNKHFV", (2, 3, 5, 4, 2, 6, 7, 11), strict=True))
EINSUMS = [
    "BTD,DF->BTF",
    "BTD,DNH->BNTH",
    "BTD,DKH->BTKH",
    "BNTH,NHD->BTD",
    "BTNH,NHD->BTD",
    "BD,DV->BV",
    "BTD,DNH->HBNT",
    "NHBT,HND->BTD",
]


def _operands(einsum):
    x, kernel = einsum.split("->")[0].split(",")
    generator = np.random.default_rng(0)
    return tuple(generator.normal(size=[SIZES[letter] for letter in letters]) for letters in (x, kernel))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("einsum", EINSUMS)
def test_contract_is_einsum_forward_and_backward(einsum, platform):
    with tracing_for(platform):
        _check_contract(einsum)


@pytest.mark.parametrize("einsum", EINSUMS)
def test_contract_is_einsum_where_devices_divide_rows(einsum):
    layout = Sharded.abstract(ShardingConfig(MeshConfig(data=2, context=3), ContextParallel()), 6)
    with tracing_for("cpu"), partition.using(layout):
        _check_contract(einsum)


def _check_contract(einsum):
    x, kernel = _operands(einsum)
    expected = np.einsum(einsum, x, kernel)
    weights = np.random.default_rng(1).normal(size=expected.shape)

    @jax.jit
    def both(x, kernel, weights):
        y, pull = jax.vjp(lambda *operands: contract(einsum, *operands), x, kernel)
        return y, pull(weights)

    y, gradients = both(*map(np.float32, (x, kernel, weights)))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    # For loss = sum(y * weights) the gradients are einsums of the same letters.
    inputs, outputs = einsum.split("->")
    x_letters, kernel_letters = inputs.split(",")
    np.testing.assert_allclose(
        gradients[0], np.einsum(f"{outputs},{kernel_letters}->{x_letters}", weights, kernel), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        gradients[1], np.einsum(f"{outputs},{x_letters}->{kernel_letters}", weights, x), rtol=1e-4, atol=1e-5
    )


def test_a_product_reads_the_kernel_in_other_letters_and_leaves_the_bias_out():
    layer = LinearLayer("BTD,DNH->BNTH", (5, 4, 6), ("embed", "heads", "head_dim"), Normal(), Precision(), bias=True)
    kernel, x = np.random.default_rng(0).normal(size=(5, 4, 6)), np.random.default_rng(1).normal(size=(2, 4, 3, 6))
    params = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.ones((4, 6))}
    y = layer.apply({"params": params}, "BNTH,DNH->BNTD", jnp.asarray(x, jnp.float32), method="product")
    np.testing.assert_allclose(y, np.einsum("BNTH,DNH->BNTD", x, kernel), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("einsum", EINSUMS)
def test_contract_is_one_flat_product_in_both_directions_but_on_tpus(einsum):
    x, kernel = _operands(einsum)
    with tracing_for("cpu"):
        jaxpr = jax.make_jaxpr(jax.grad(lambda k, x: contract(einsum, x, k).sum(), (0, 1)))(kernel, x)
    products = [equation for equation in jaxpr.jaxpr.eqns if equation.primitive.name == "dot_general"]
    assert len(products) >= 2
    for product in products:
        (left, right), batch = product.params["dimension_numbers"]
        assert len(left) == len(right) == 1 and batch == ((), ())


@pytest.mark.parametrize("einsum", ["BTD,DNH->BNTH", "BTD,DF->BTF", "BNTH,NHD->BTD", "BTD,DNH->HBNT"])
def test_bias_is_added_to_the_output_letters(einsum):
    x, kernel = _operands(einsum)
    outputs = einsum.split("->")[1]
    kernel_letters = einsum.split("->")[0].split(",")[1]
    produced = "".join(letter for letter in kernel_letters if letter in outputs)
    bias = np.random.default_rng(2).normal(size=[SIZES[letter] for letter in produced])
    layer = LinearLayer(einsum, kernel.shape, ("embed",) * kernel.ndim, Normal(), Precision(), bias=True)
    y = jax.jit(layer.apply)({"params": {"kernel": kernel, "bias": bias}}, np.float32(x))
    ones = np.ones([SIZES[letter] for letter in outputs])
    expected = np.einsum(einsum, x, kernel) + np.einsum(f"{outputs},{produced}->{outputs}", ones, bias)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_normal_has_its_standard_deviation_and_zero_mean():
    layer = LinearLayer("BTD,DF->BTF", (200, 300), ("embed", "mlp"), Normal(0.05), Precision())
    kernel = layer.init(jax.random.key(0), jnp.zeros((1, 1, 200)))["params"]["kernel"].value
    assert kernel.dtype == jnp.float32
    np.testing.assert_allclose(np.std(kernel), 0.05, rtol=0.02)
    assert abs(np.mean(kernel)) < 4 * 0.05 / np.sqrt(kernel.size)


@pytest.mark.parametrize(
    ("einsum", "x_shape", "shape", "fan_in"),
    [("BTD,DF->BTF", (1, 1, 300), (300, 100), 300), ("BNTH,NHD->BTD", (1, 20, 1, 15), (20, 15, 100), 300)],
)
def test_fan_in_counts_all_contracted_dimensions(einsum, x_shape, shape, fan_in):
    logical_axes = ("heads", "head_dim", "embed")[-len(shape) :]
    layer = LinearLayer(einsum, shape, logical_axes, FanIn(2.0), Precision())
    kernel = layer.init(jax.random.key(0), jnp.zeros(x_shape))["params"]["kernel"].value
    np.testing.assert_allclose(np.std(kernel), 2.0 / np.sqrt(fan_in), rtol=0.02)


def test_bias_starts_at_zero_and_is_annotated_like_the_outputs():
    layer = LinearLayer("BTD,DNH->BNTH", (4, 2, 3), ("embed", "heads", "head_dim"), Normal(), Precision(), bias=True)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 1, 4)))["params"]
    assert params["kernel"].names == ("embed", "heads", "head_dim")
    assert params["bias"].names == ("heads", "head_dim")
    assert params["bias"].value.shape == (2, 3) and not params["bias"].value.any()


def test_without_bias_there_is_none():
    layer = LinearLayer("BTD,DF->BTF", (4, 2), ("embed", "mlp"), Normal(), Precision())
    assert set(layer.init(jax.random.key(0), jnp.zeros((1, 1, 4)))["params"]) == {"kernel"}


@pytest.mark.parametrize(
    ("precision", "kept", "computed"),
    [
        (Precision(), "float32", "float32"),
        (MIXED, "float32", "bfloat16"),
        (Precision("bfloat16"), "bfloat16", "float32"),
    ],
)
def test_precision_decides_both_types(precision, kept, computed):
    layer = LinearLayer("BTD,DF->BTF", (4, 2), ("embed", "mlp"), Normal(), precision, bias=True)
    y, variables = layer.init_with_output(jax.random.key(0), jnp.zeros((1, 1, 4)))
    assert y.dtype == computed
    assert all(leaf.dtype == kept for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize("precision", [Precision(), MIXED])
def test_a_block_diagonal_matrix_is_that_matrix(precision):
    layer = BlockDiagonal(3, 6, FanIn(), precision)
    generator = np.random.default_rng(0)
    x, kernel, bias = generator.normal(size=(2, 4, 6)), generator.normal(size=(3, 2, 2)), generator.normal(size=(3, 2))
    matrix = np.zeros((6, 6))
    for block in range(3):
        matrix[2 * block : 2 * block + 2, 2 * block : 2 * block + 2] = kernel[block]
    y = layer.apply({"params": {"kernel": kernel, "bias": bias}}, jnp.asarray(x, jnp.float32))
    assert y.dtype == precision.dtype
    tolerance = 1e-5 if precision.dtype == jnp.float32 else 0.05
    np.testing.assert_allclose(np.asarray(y, np.float32), x @ matrix + bias.ravel(), rtol=tolerance, atol=tolerance)


def test_blocks_start_at_the_scale_of_their_own_inputs():
    boxed = BlockDiagonal(4, 400, FanIn(), Precision()).init(jax.random.key(0), jnp.zeros((1, 1, 400)))["params"]
    np.testing.assert_allclose(boxed["kernel"].value.std(), 0.1, rtol=0.05)
    assert boxed["kernel"].value.shape == (4, 100, 100) and (boxed["bias"].value == 0).all()


def test_each_block_is_a_matrix_of_its_own_to_an_optimizer():
    boxed = BlockDiagonal(4, 8, FanIn(), Precision()).init(jax.random.key(0), jnp.zeros((1, 1, 8)))["params"]
    kernel, bias = (layouts(boxed)[name] for name in ("kernel", "bias"))
    assert (kernel.stack, kernel.rows, kernel.columns) == ((0,), (1,), (2,))
    assert kernel.is_matrix and not bias.is_matrix

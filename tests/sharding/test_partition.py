"""From logical axes to shardings, and the errors on the way. Many devices: test_eight_devices.py."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from llm_jax.models.build import abstract_parameters
from llm_jax.models.transformer import Transformer
from llm_jax.sharding import axes, partition
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.rules import Combined, DataParallel, FullySharded, PipelineParallel, ShardingConfig
from tests.helpers import tiny

MESH = AbstractMesh((2, 4, 1), ("data", "fsdp", "expert"), axis_types=(AxisType.Auto,) * 3)
TABLE = FullySharded().table()


def _boxed(names, shape=(8, 4)):
    return {"layer": {"kernel": nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)}}


def _shape(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_axes_are_read_from_the_boxes():
    assert partition.logical_axes(_boxed(("embed", "mlp"))) == {"layer": {"kernel": ("embed", "mlp")}}


def test_a_parameter_without_axes_is_an_error_with_its_path():
    tree = _boxed(("embed", "mlp")) | {"other": {"bias": _shape(3)}}
    with pytest.raises(ValueError, match="parameter other/bias has no logical axes: annotate its initialiser"):
        partition.logical_axes(tree)


def test_an_unknown_word_is_an_error_with_path_and_word():
    with pytest.raises(
        ValueError, match=r"parameter layer/kernel has axes \('embed', 'mpl'\): \['mpl'\] are not logical axes"
    ):
        partition.logical_axes(_boxed(("embed", "mpl")))


def test_words_become_specs_by_the_table():
    shapes = {"kernel": _shape(3, 8, 6), "scale": _shape(7)}
    logical_axes = {"kernel": (axes.LAYERS, axes.EMBED, axes.MLP), "scale": (axes.NORM,)}
    result = partition.shardings(shapes, logical_axes, MESH, TABLE)
    assert result["kernel"] == NamedSharding(MESH, PartitionSpec(None, ("fsdp", "expert"), None))
    assert result["scale"].is_fully_replicated
    assert result["kernel"].shard_shape((3, 8, 6)) == (3, 2, 6)


def test_a_dimension_that_does_not_divide_is_an_error_with_path_shape_axis_and_remedy():
    with pytest.raises(ValueError) as caught:
        partition.shardings({"a": {"kernel": _shape(6, 5)}}, {"a": {"kernel": ("embed", "mlp")}}, MESH, TABLE)
    message = str(caught.value)
    for part in ("a/kernel", "(6, 5)", "'embed'", "size 6", "'fsdp'", "4 devices", "multiple of 4"):
        assert part in message
    partition.shardings(
        {"a": {"kernel": _shape(6, 5)}}, {"a": {"kernel": ("embed", "mlp")}}, MESH, DataParallel().table()
    )


def test_fewer_layers_than_stages_stay_whole():
    mesh = AbstractMesh((4,), ("stage",), axis_types=(AxisType.Auto,))
    shapes, logical_axes = (
        {"long": _shape(8, 6), "short": _shape(3, 6)},
        dict.fromkeys(("long", "short"), ("layers", "mlp")),
    )
    table = dict.fromkeys(axes.LOGICAL_AXES) | {axes.LAYERS: "stage"}
    placed = partition.shardings(shapes, logical_axes, mesh, table)
    assert placed["long"].shard_shape((8, 6)) == (2, 6) and placed["short"].is_fully_replicated
    with pytest.raises(ValueError, match="'layers' has size 6, which must be divisible"):
        partition.shardings({"a": _shape(6, 6)}, {"a": ("layers", "mlp")}, mesh, table)


def test_within_a_part_of_an_axis_nothing_is_divided_over_it():
    layout = Layout(MeshConfig().build(jax.devices()[:1]), Combined(FullySharded(), PipelineParallel(4)))
    with partition.activate(layout):
        with partition.within("stage", "fsdp"):
            table = partition.active().table
            assert table[axes.BATCH] == ("data", "expert") and table[axes.LAYERS] is None
            assert table[axes.EMBED] == ("expert",)
        assert partition.active() is layout


@pytest.mark.parametrize("build", tiny.FAMILIES.values(), ids=tiny.FAMILIES)
def test_every_parameter_of_a_family_is_annotated_and_all_but_norms_and_biases_are_divided(build):
    shapes, logical_axes = abstract_parameters(Transformer(build()))
    placed = partition.shardings(shapes, logical_axes, MESH, TABLE)
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(placed), strict=True
    ):
        name = jax.tree_util.keystr(path, simple=True)
        if not name.endswith(("scale", "bias")):
            assert sharding.shard_shape(leaf.shape) != leaf.shape, name


def test_copies_of_the_parameters_inside_another_tree_lie_as_they_do():
    parameters = {"a": {"table": _shape(8, 4)}, "table": _shape(8, 4), "b": {"bias": _shape(8)}}
    logical_axes = {"a": {"table": ("embed", "mlp")}, "table": ("vocab", "embed"), "b": {"bias": ("norm",)}}
    placed = partition.shardings(parameters, logical_axes, MESH, TABLE)
    state = jax.eval_shape(optax.adamw(1e-3).init, parameters)
    result = partition.like_parameters(state, parameters, placed, MESH)
    adam = result[0]
    assert adam.mu == adam.nu == placed
    assert adam.mu["a"]["table"] != adam.mu["table"]
    assert adam.count == NamedSharding(MESH, PartitionSpec())


def test_what_has_a_parameters_path_but_not_its_shape_is_replicated():
    parameters = {"kernel": _shape(8, 4)}
    placed = partition.shardings(parameters, {"kernel": ("embed", "mlp")}, MESH, TABLE)
    state = {"rows": {"kernel": _shape(8)}, "copy": {"kernel": _shape(8, 4)}, "kernel_of_another": _shape(8, 4)}
    result = partition.like_parameters(state, parameters, placed, MESH)
    assert result["rows"]["kernel"].is_fully_replicated
    assert result["copy"]["kernel"] == placed["kernel"]
    assert result["kernel_of_another"].is_fully_replicated


def test_rows_of_a_batch_go_to_different_devices():
    sharding = Layout(MESH, FullySharded()).rows
    assert sharding.shard_shape((16, 5)) == (2, 5)


def test_devices_that_need_not_exist_compute_nothing():
    layout = Layout.abstract(ShardingConfig(MeshConfig(data=2)), 2)
    with pytest.raises(ValueError, match="2 abstract devices"), partition.activate(layout):
        pass


def test_a_part_of_no_layout_is_refused():
    with pytest.raises(ValueError, match="no active layout"), partition.within("stage"):
        pass


def test_constraints_do_nothing_outside_a_mesh():
    x = jnp.ones((2, 3, 4))
    assert "sharding_constraint" not in str(
        jax.make_jaxpr(lambda x: partition.constrain(x, axes.BATCH, axes.LENGTH, axes.WIDTH))(x)
    )


def test_constraints_follow_the_table_inside_a_mesh():
    layout = Layout.of(ShardingConfig(strategy=FullySharded()), jax.devices()[:1])
    with partition.activate(layout):
        jaxpr = jax.make_jaxpr(lambda x: partition.constrain(x, axes.BATCH, axes.LENGTH, axes.WIDTH))(
            jnp.ones((2, 3, 4))
        )
    assert "sharding_constraint" in str(jaxpr) and "('data', 'fsdp', 'expert')" in str(jaxpr)


@pytest.mark.parametrize(
    ("stage", "batch", "width"), [(1, ("data", "fsdp", "expert"), None), (2, ("data", "expert"), "fsdp")]
)
def test_what_gradients_are_made_of_is_divided_as_they_are(stage, batch, width):
    sharding = Layout(MESH, FullySharded(stage)).gradient_sharding(axes.BATCH, axes.LENGTH, axes.EMBED)
    assert sharding.is_equivalent_to(NamedSharding(MESH, PartitionSpec(batch, None, width)), 3)

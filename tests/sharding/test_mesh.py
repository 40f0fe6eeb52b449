"""A mesh uses all devices it is given, or says which sizes would."""

import jax
import pytest

from llm_jax.sharding.mesh import MeshConfig


def test_one_device_makes_the_default_mesh():
    mesh = MeshConfig().build(jax.devices()[:1])
    assert dict(mesh.shape) == dict.fromkeys(("data", "fsdp", "stage", "expert", "context", "tensor"), 1)


def test_axes_are_auto_so_that_annotations_are_propagated():
    mesh = MeshConfig().build(jax.devices()[:1])
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize("axis", ["data", "fsdp", "stage", "expert", "context", "tensor"])
@pytest.mark.parametrize("size", [0, -2])
def test_a_size_is_positive_or_the_rest(axis, size):
    with pytest.raises(ValueError, match=f"mesh.{axis} is {size}: it must be 1 or greater, or -1"):
        MeshConfig(**{axis: size})


def test_only_one_axis_takes_the_rest():
    with pytest.raises(ValueError, match=r"\['data', 'fsdp'\] are all -1.*give the others a size"):
        MeshConfig(data=-1, fsdp=-1)


@pytest.mark.parametrize(
    ("config", "count", "offers"),
    [
        (MeshConfig(data=3, fsdp=2), 8, "(2, 4)"),
        (MeshConfig(data=-1, fsdp=3), 8, "(8, 1)"),
        (MeshConfig(data=2, fsdp=16), 8, "(1, 8)"),
        (MeshConfig(data=2), 4, "(4, 1)"),
        (MeshConfig(data=8, tensor=2), 8, "{'tensor': 2}: [(1, 4), (2, 2), (4, 1)]"),
        (MeshConfig(tensor=3), 8, "{'tensor': 3}: none"),
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_refused_with_those_that_do(config, count, offers):
    with pytest.raises(ValueError, match=f"does not fit {count} devices: the sizes must multiply to that") as caught:
        config.build([None] * count)
    assert offers in str(caught.value)

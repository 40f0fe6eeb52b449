"""A mesh uses all devices it is given, or says which sizes would."""

import dataclasses

import jax
import numpy as np
import pytest

from llm_jax.sharding.mesh import Axes, MeshConfig


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
    with pytest.raises(ValueError, match=r"\['data', 'fsdp'\] are all -1.*set the sizes of the others"):
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
    with pytest.raises(
        ValueError, match=f"does not fit {count} devices: the product of the sizes must be that"
    ) as caught:
        config.build([None] * count)
    assert offers in str(caught.value) and "--cpu-devices" in str(caught.value)


@dataclasses.dataclass(frozen=True)
class _Device:
    """What the layout of a mesh asks of a device."""

    id: int
    process_index: int
    slice_index: int = 0
    platform: str = "gpu"
    device_kind: str = "a chip"


def _shown(config, devices):
    return np.vectorize(lambda device: device.id)(config.build(devices).devices).squeeze()


def test_the_part_across_hosts_is_the_outer_part_of_its_axis():
    devices = [_Device(index, index // 4) for index in range(16)]
    ids = _shown(MeshConfig(data=4, fsdp=4, across=Axes(data=4)), devices)
    assert (ids // 4 == np.arange(4)[:, None]).all()  # a row of fsdp lies in one host
    ids = _shown(MeshConfig(data=1, fsdp=16, across=Axes(fsdp=4)), devices)
    assert sorted(ids) == list(range(16)) and (ids.reshape(4, 4) // 4 == ids.reshape(4, 4)[:, :1] // 4).all()


def test_slices_of_tpus_are_told_from_their_hosts():
    devices = [_Device(index, process_index=index // 2, slice_index=index // 8) for index in range(16)]
    ids = _shown(MeshConfig(data=2, fsdp=8, across=Axes(data=2)), devices)
    assert (ids // 8 == np.arange(2)[:, None]).all()
    with pytest.raises(ValueError, match="the devices are in 2 slices: the product of its sizes must be that number"):
        MeshConfig(data=8, fsdp=2, across=Axes(data=8)).build(devices)


def test_the_part_across_slices_divides_its_axis():
    with pytest.raises(ValueError, match=r"mesh.fsdp is 6 and mesh.across.fsdp 4: the part across slices must divide"):
        MeshConfig(fsdp=6, across=Axes(fsdp=4))


def test_the_part_across_slices_divides_the_axis_that_takes_the_rest():
    with pytest.raises(ValueError, match=r"mesh.data is 1 and mesh.across.data 2: the part across slices must divide"):
        MeshConfig(fsdp=8, across=Axes(data=2)).abstract(8)

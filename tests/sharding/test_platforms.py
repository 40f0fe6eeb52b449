"""Formulations are chosen by the platform that a program is traced for."""

import jax
import jax.numpy as jnp
import pytest

from llm_jax.sharding import partition
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.platforms import by_platform, current, tracing_for
from llm_jax.sharding.rules import DataParallel, ShardingConfig


def _chosen() -> str:
    return by_platform("an operand", tpu=lambda _: "tpu", cpu=lambda _: "cpu", default=lambda _: "default")


def test_the_platform_is_the_default_device_s_unless_another_is_traced_for():
    assert (current(), _chosen()) == (jax.default_backend(), "cpu")
    with jax.default_device(jax.devices("cpu")[0]):
        assert current() == "cpu"
    with tracing_for("tpu"):
        assert _chosen() == "tpu"
        with tracing_for("gpu"):
            assert _chosen() == "default"
    assert _chosen() == "cpu"


@pytest.mark.parametrize("use_pmap", [False, True])
def test_inside_a_layout_the_platform_is_that_of_its_devices(use_pmap):
    layout = Layout.of(ShardingConfig(MeshConfig(data=1), DataParallel(use_pmap)), jax.devices()[:1])
    with tracing_for("tpu"), partition.activate(layout):
        assert _chosen() == "cpu"
        with partition.deactivated():
            assert _chosen() == "cpu"


def test_only_the_chosen_formulation_is_traced():
    def refuse(x):
        raise AssertionError("traced for another platform")

    product = lambda x: by_platform(x, cpu=lambda x: x * 2, tpu=refuse, default=refuse)  # noqa: E731
    assert jax.jit(jax.grad(product))(jnp.float32(1)) == 2

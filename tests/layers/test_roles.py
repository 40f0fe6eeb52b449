"""The role of a parameter, from where it is made to the tree of roles."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from llm_jax.layers.initialisers import annotated
from llm_jax.layers.roles import ParameterBox, Role, roles_of, unboxed
from llm_jax.sharding import partition


class Gain(nn.Module):
    """x [B, D] times a factor of each feature."""

    role: str = Role.SCALE

    @nn.compact
    def __call__(self, x, _):
        return x * self.param("gain", annotated(nn.initializers.ones_init(), ("embed",), self.role), x.shape[-1:]), None


def _shapes(module):
    return jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.ones((2, 3)), None))["params"]


def _scanned(axis):
    return nn.scan(
        Gain,
        variable_axes={"params": axis},
        split_rngs={"params": True},
        length=4,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )()


@pytest.mark.parametrize(
    "axis, shape, logical_axes", [(0, (4, 3), ("layers", "embed")), (1, (3, 4), ("embed", "layers"))]
)
def test_layers_add_an_axis_and_keep_the_role(axis, shape, logical_axes):
    boxed = _shapes(_scanned(axis))
    assert unboxed(boxed)["gain"].shape == shape
    assert partition.logical_axes(boxed) == {"gain": logical_axes}
    assert roles_of(boxed) == {"gain": Role.SCALE}


def test_a_layer_of_a_stack_reads_its_own_parameter():
    module, x = _scanned(0), jnp.ones((2, 3))
    params = {"gain": jnp.arange(1.0, 13.0).reshape(4, 3)}
    y, _ = module.apply({"params": params}, x, None)
    assert (y == params["gain"].prod(axis=0)).all()


def test_the_role_outlives_compilation_and_maps():
    made = jax.jit(lambda: Gain().init(jax.random.key(0), jnp.ones((2, 3)), None)["params"])()
    doubled = jax.tree.map(lambda x: 2 * x, made)
    assert isinstance(doubled["gain"], ParameterBox) and roles_of(doubled) == {"gain": Role.SCALE}
    assert (nn.unbox(doubled)["gain"] == 2).all() and (unboxed(doubled)["gain"] == 2).all()


def test_a_role_may_be_given_by_its_name():
    (role,) = jax.tree.leaves(roles_of(_shapes(Gain("rate"))))
    assert role is Role.RATE


@pytest.mark.parametrize("role", ["gain", None, ("embed",)])
def test_refuses_what_is_no_role(role):
    with pytest.raises(ValueError, match="it must be one of Role, matrix, expert, "):
        _shapes(Gain(role))


def test_a_parameter_without_a_role_is_an_error_with_its_path():
    bare = nn.with_logical_partitioning(nn.initializers.ones_init(), ("mlp", "embed"))
    layer = nn.Dense(5, kernel_init=bare, use_bias=False)
    boxed = {"layer": jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.ones((2, 3))))["params"]}
    with pytest.raises(ValueError, match="parameter layer/kernel has no role: .*annotated\\(init, axes, role\\)"):
        roles_of(boxed)

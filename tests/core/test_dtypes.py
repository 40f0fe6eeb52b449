"""Precision names two number types."""

import jax.numpy as jnp
import pytest

from llm_jax.core.dtypes import MIXED, Precision


def test_names_become_types():
    assert (Precision().param_dtype, Precision().dtype) == (jnp.float32, jnp.float32)
    assert (MIXED.param_dtype, MIXED.dtype) == (jnp.float32, jnp.bfloat16)


@pytest.mark.parametrize("field", ["params", "compute"])
@pytest.mark.parametrize("name", ["bf16", "float16", "int8"])
def test_other_types_are_refused_when_the_config_is_built(field, name):
    with pytest.raises(ValueError, match=rf"{field} is '{name}'.*bfloat16"):
        Precision(**{field: name})

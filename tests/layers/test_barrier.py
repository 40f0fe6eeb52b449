"""Fences change no number, and stand in programs for TPUs only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layers.barrier import fence, fence_gradients
from llm_jax.sharding.platforms import tracing_for


@pytest.mark.parametrize(("line", "forward"), [(fence, 1), (fence_gradients, 0)])
def test_a_fence_stands_in_programs_for_tpus_alone(line, forward):
    barriers = {}
    for platform in ("cpu", "gpu", "tpu"):
        with tracing_for(platform):
            traced = jax.make_jaxpr(jax.grad(lambda x: jnp.sum(jnp.sin(line(x * 2)))))(jnp.ones(3))
        barriers[platform] = str(traced).count("optimization_barrier")
    assert barriers == {"cpu": 0, "gpu": 0, "tpu": 1 + forward}


@pytest.mark.parametrize("line", [fence, fence_gradients])
def test_a_fence_changes_no_number(line):
    x, y = jnp.arange(3.0), jnp.ones(2)
    together = lambda x, y: jnp.sum(line((x, y))[0] ** 3) + jnp.sum(line(y) * 5)  # noqa: E731
    gradients = jax.jit(jax.grad(together, (0, 1)))(x, y)
    np.testing.assert_array_equal(gradients[0], 3 * np.arange(3.0) ** 2)
    np.testing.assert_array_equal(gradients[1], [5, 5])
    for one, other in zip(line((x, y)), (x, y), strict=True):
        np.testing.assert_array_equal(one, other)

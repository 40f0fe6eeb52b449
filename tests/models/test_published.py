"""What must hold for every published family: decoders, encoders and pairs of both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.models.build import build
from llm_jax.models.stack import Execution
from tests.helpers import tiny
from tests.helpers.published import EVERY, covering, executed, types

_OF_TYPE = covering(EVERY, types)
_FULL = pytest.mark.full(reason="models that have every type of part between them, in every run")


@pytest.mark.parametrize(
    "name", [*_OF_TYPE, *(pytest.param(name, marks=_FULL) for name in covering(EVERY) if name not in _OF_TYPE)]
)
def test_a_loop_with_and_unrolled_layers_without_recomputation_agree(name: str):
    def gradient(execution: Execution):
        model = build(executed(EVERY[name], execution))
        inputs = tiny.inputs(model.config, 2, 8)

        def loss(params):
            # Of one class as of many: a cross-entropy of one would be zero.
            return jnp.mean(jnp.sin(model.apply({"params": params}, inputs).logits_BTV))

        return jax.jit(jax.value_and_grad(loss))(tiny.parameters(model))

    loss, gradients = gradient(Execution("full", unroll=1))
    expected_loss, expected = gradient(Execution(unroll=99))
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    for (path, actual), (_, wanted) in zip(trees.named_leaves(gradients), trees.named_leaves(expected), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-3, atol=1e-5, err_msg=path)
        # A bias of keys moves all scores of a query alike, which the softmax does not see; none of these tokens asks or
        # is of another part than the first. What corrects a choice of experts is moved by their load.
        silent = path.endswith(("key/bias", "by_part/bias", "parts", "router/bias")) or path == "embed/target"
        assert np.abs(wanted).max() > 0 or silent, path

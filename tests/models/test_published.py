"""Execution changes no result, in every published family."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.models.stack import Execution
from llm_jax.models.transformer import Transformer
from tests.helpers import tiny
from tests.helpers.published import PUBLISHED

TOKENS = tiny.tokens(2, 8)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_loop_with_and_unrolled_layers_without_recomputation_agree(name: str):
    def gradient(execution: Execution):
        model = Transformer(dataclasses.replace(PUBLISHED[name], execution=execution))

        def loss(params):
            logits_BTV = model.apply({"params": params}, TOKENS).logits_BTV
            return jnp.mean(jax.nn.logsumexp(logits_BTV, axis=-1) - logits_BTV[..., 0])

        return jax.jit(jax.value_and_grad(loss))(tiny.parameters(model))

    loss, gradients = gradient(Execution("full", unroll=1))
    expected_loss, expected = gradient(Execution(unroll=99))
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    for (path, actual), (_, wanted) in zip(trees.named_leaves(gradients), trees.named_leaves(expected), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-3, atol=1e-5, err_msg=path)
        # A bias of keys moves all scores of a query alike, which the softmax does not see.
        assert np.abs(wanted).max() > 0 or path.endswith("key/bias"), path

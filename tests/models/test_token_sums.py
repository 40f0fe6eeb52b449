"""A gradient in bfloat16 arithmetic is that of float32 but for the rounding of activations: what is summed over tokens
is summed in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.core.dtypes import MIXED, Precision
from llm_jax.models.build import abstract_parameters, build
from llm_jax.objectives.batch import Batch
from llm_jax.objectives.causal_lm import CausalLMConfig
from tests.helpers import tiny
from tests.helpers.programs import narrow_sums
from tests.helpers.published import EVERY

PARTS = (
    "opt, 350m",
    "bert",
    "xlnet",
    "lamda",
    "deepseek",
    "gpt_oss",
    "qwen2_moe",
    "recurrent_gemma",
    "lstm",
    "mamba2, biases",
    "retnet",
    "umt5",
    "cohere, normalised heads",
)
"""Families that have, between them, every kind of parameter."""


@pytest.mark.parametrize("name", PARTS)
def test_nothing_is_summed_in_bfloat16(name: str):
    model = build(EVERY[name], MIXED)
    inputs, (shapes, _) = tiny.inputs(model.config, 2, 8), abstract_parameters(model)

    def loss(params):
        return jnp.mean(jnp.sin(model.apply({"params": params}, inputs).logits_BTV))

    assert narrow_sums(jax.make_jaxpr(jax.grad(loss))(shapes).jaxpr) == set()


def test_gradients_of_many_tokens_are_those_of_float32():
    """16,384 tokens that are distributed as those of text, of one type."""
    config = tiny.tiny_gpt2()
    config = dataclasses.replace(config, embed=dataclasses.replace(config.embed, types=2))
    odds = 1 / np.arange(1, tiny.VOCAB + 1)
    ids = np.random.default_rng(0).choice(tiny.VOCAB, (1024, 17), p=odds / odds.sum()).astype(np.int32)
    places = np.broadcast_to(np.arange(17, dtype=np.int32), ids.shape)
    batch = Batch.next_tokens({"tokens": ids, "segment_ids": np.ones_like(ids), "positions": places})
    params = jax.tree.map(lambda x: x / 4, tiny.parameters(build(config)))

    def gradient(precision: Precision):
        model = build(config, precision)
        loss = lambda params: CausalLMConfig().loss(model, params, batch)[0]  # noqa: E731
        return dict(trees.named_leaves(jax.jit(jax.grad(loss))(params)))

    expected, actual = gradient(Precision()), gradient(MIXED)
    # A bias of keys moves all scores of a query alike, which the softmax does not see: its gradient is rounding.
    names = [name for name in expected if not name.endswith("key/bias")]
    off = {name: np.linalg.norm(actual[name] - expected[name]) / np.linalg.norm(expected[name]) for name in names}
    assert {name: float(error) for name, error in off.items() if error > 0.02} == {}

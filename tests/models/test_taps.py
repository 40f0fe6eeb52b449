"""Taps show what a model computes, and nothing is computed for those that nobody asks for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.layers.tap import tapped
from llm_jax.models.build import applied, build
from llm_jax.models.families.decoder import with_experts
from llm_jax.models.families.llama import llama
from llm_jax.models.stack import Execution, Segment
from tests.helpers import tiny

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, tiny.VOCAB, (2, 9)), jnp.int32)
BLOCK = "stack/segment_0/block_0"


@pytest.fixture(scope="module", params=["loop", "written out", "recomputed"])
def model(request):
    execution = {"loop": Execution(unroll=1), "written out": Execution(), "recomputed": Execution(remat="full")}
    return build(dataclasses.replace(tiny.tiny_llama(layers=3), execution=execution[request.param]))


def test_they_are_what_the_model_computes(model):
    params = tiny.parameters(model)
    output, found = jax.jit(lambda params: tapped(model, params, TOKENS, names=("*",)))(params)
    plain = applied(model, params, TOKENS)
    np.testing.assert_allclose(output.logits_BTV, plain.logits_BTV, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found["logits"], output.logits_BTV)
    np.testing.assert_array_equal(found["last_hidden"], output.hidden_BTD)
    assert {name.removeprefix(f"{BLOCK}/") for name in found if name.startswith("stack")} == {
        *("mixer/weights", "mixer_output", "ffn/inner", "ffn_output", "stream"),
    }
    stream_LBTD = found[f"{BLOCK}/stream"]
    before_LBTD = jnp.concatenate([found["embedded"][None], stream_LBTD[:-1]])
    branches_LBTD = found[f"{BLOCK}/mixer_output"] + found[f"{BLOCK}/ffn_output"]
    np.testing.assert_allclose(stream_LBTD, before_LBTD + branches_LBTD, rtol=1e-5, atol=1e-5)
    weights_LBNTS = np.asarray(found[f"{BLOCK}/mixer/weights"])
    assert weights_LBNTS.shape == (3, 2, 4, 9, 9) and weights_LBNTS.dtype == np.float32
    np.testing.assert_allclose(weights_LBNTS.sum(-1), 1, rtol=1e-5)
    assert not np.triu(weights_LBNTS, 1).any() and (weights_LBNTS[..., -1, :] > 0).all()


def test_only_what_is_asked_for_is_made(model):
    params = tiny.parameters(model)
    _, found = tapped(model, params, TOKENS, names=("*/ffn/inner", "embedded"))
    assert found.keys() == {f"{BLOCK}/ffn/inner", "embedded"}

    def text(function):
        return jax.jit(function).lower(params).as_text()

    # Names of functions in the text are counted over the process.
    plain, none = (
        text(lambda params: applied(model, params, TOKENS)),
        text(lambda params: tapped(model, params, TOKENS, names=())[0]),
    )
    assert plain.count("dot_general") == none.count("dot_general") > 0
    assert len(plain.splitlines()) == len(none.splitlines())


def test_they_can_be_differentiated(model):
    params = tiny.parameters(model)

    def of_tap(params):
        return jnp.sum(
            jnp.square(tapped(model, params, TOKENS, names=("last_hidden",), method="hidden")[1]["last_hidden"])
        )

    def of_output(params):
        return jnp.sum(jnp.square(applied(model, params, TOKENS, method="hidden").hidden_BTD))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        *(jax.grad(function)(params) for function in (of_tap, of_output)),
    )


def test_a_name_that_no_tap_has_is_refused_with_those_there_are(model):
    with pytest.raises(ValueError, match=r"no tap is named 'last_hiden'; did you mean 'last_hidden'\?.*embedded"):
        tapped(model, tiny.parameters(model), TOKENS, names=("last_hiden",))


def test_layers_that_share_their_weights_and_experts_have_taps_of_their_own():
    block = llama(1, 2, 8, hidden=12, vocab_size=tiny.VOCAB, max_length=16).segments[0].blocks[0]
    config = llama(1, 2, 8, hidden=12, vocab_size=tiny.VOCAB, max_length=16)
    shared = build(dataclasses.replace(config, segments=(Segment((block,), 3, shared=True),)))
    _, found = tapped(shared, tiny.parameters(shared), TOKENS, names=("*/stream",))
    stream_LBTD = found[f"{BLOCK}/stream"]
    assert stream_LBTD.shape == (3, 2, 9, 8) and not np.allclose(stream_LBTD[0], stream_LBTD[1])
    mixed = build(with_experts(config, MoEConfig(3, block.ffn, SoftmaxConfig(2)), [0]))
    _, found = tapped(mixed, tiny.parameters(mixed), TOKENS, names=("*/visits",))
    np.testing.assert_array_equal(found[f"{BLOCK}/ffn/visits"].sum(-1), np.full((1, 2, 9), 2))

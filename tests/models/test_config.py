"""What a model config means, and what it refuses."""

import dataclasses

import jax
import numpy as np
import pytest

from llm_jax.models.block import BlockConfig
from llm_jax.models.heads import HeadConfig, TiedHead
from llm_jax.models.transformer import Transformer
from tests.helpers import tiny


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segments": ()}, "segments is empty: a model needs at least one segment"),
        ({"width": 0}, "width is 0"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"max_length": 0}, "max_length is 0"),
    ],
)
def test_bad_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny.tiny_llama(), **change)


def test_dropout_is_a_fraction():
    block = tiny.tiny_gpt2().segments[0].blocks[0]
    with pytest.raises(ValueError, match="dropout is -0.1"):
        BlockConfig(block.mixer, block.ffn, block.norm, dropout=-0.1)


def test_depth_counts_blocks():
    config = tiny.tiny_gpt2(layers=3)
    assert config.depth == 3
    assert dataclasses.replace(config, segments=config.segments * 2).depth == 6


@pytest.mark.parametrize("head", [HeadConfig, TiedHead])
def test_a_softcap_bounds_the_logits(head):
    logits = {}
    for softcap in (None, 2.0):
        model = Transformer(dataclasses.replace(tiny.tiny_llama(), head=head(softcap=softcap)))
        params = jax.tree.map(lambda leaf: 3 * leaf, tiny.parameters(model))
        logits[softcap] = model.apply({"params": params}, tiny.tokens(1, 8)).logits_BTV
    np.testing.assert_allclose(logits[2.0], 2 * np.tanh(logits[None] / 2), rtol=1e-5)
    assert np.abs(logits[None]).max() > 4
    with pytest.raises(ValueError, match="softcap is 0"):
        head(softcap=0)


def test_a_head_may_have_a_bias():
    model = Transformer(dataclasses.replace(tiny.tiny_llama(), head=HeadConfig(bias=True)))
    params = tiny.parameters(model)
    biased = model.apply({"params": params}, tiny.tokens(1, 8)).logits_BTV
    bias = params["head"].pop("bias")
    plain = Transformer(tiny.tiny_llama()).apply({"params": params}, tiny.tokens(1, 8)).logits_BTV
    np.testing.assert_allclose(biased, plain + bias, rtol=1e-5)

"""What a model config means, and what it refuses."""

import dataclasses

import jax
import numpy as np
import pytest

from llm_jax.layers.attention.attention import CrossAttentionConfig
from llm_jax.layers.attention.kernels import BlockedKernel, ChunkedKernel
from llm_jax.layers.attention.masks import PrefixCausal
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.embed import EmbedConfig, FactorizedConfig
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.fixed import HashConfig
from llm_jax.layers.initialisers import UniformGlorot
from llm_jax.layers.positions.relative_bias import RelativeBiasConfig
from llm_jax.models.block import BlockConfig, Chain
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import with_experts
from llm_jax.models.families.gpt2 import gpt2
from llm_jax.models.heads import ClassHead, HeadConfig, TiedHead
from llm_jax.models.transformer import Transformer
from tests.helpers import tiny
from tests.helpers.published import ENCODERS, EVERY, PAIRS, PUBLISHED


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


def test_a_stack_of_a_billion_blocks_is_refused_with_its_size():
    (segment,) = tiny.tiny_gpt2().segments
    # 4 matrices of attention and 2 of the ffn, 16 wide and 64 in the ffn; biases; two norms.
    weights = 4 * (16 * 16 + 16) + 2 * 16 * 64 + 64 + 16 + 2 * 2 * 16
    with pytest.raises(ValueError) as error:
        dataclasses.replace(tiny.tiny_gpt2(), segments=(dataclasses.replace(segment, repeats=10**9),))
    assert f"1,000,000,000 blocks with {weights * 1e9:.3g} weights, {weights * 4e-3:.3g} TB" in str(error.value)


GPT2, BERT, BART, T5 = PUBLISHED["gpt2"], ENCODERS["bert"], PAIRS["bart"], PAIRS["t5"]


def _two_biases() -> TransformerConfig:
    (segment,) = T5.encoder.segments
    (block,) = segment.blocks
    other = dataclasses.replace(block, mixer=dataclasses.replace(block.mixer, scores=T5_OTHER))
    return dataclasses.replace(T5.encoder, segments=(dataclasses.replace(segment, blocks=(block, other)),))


def _hashed(config: TransformerConfig, ids: int) -> TransformerConfig:
    """With experts by the id of a token, of which so many have a count."""
    return with_experts(config, MoEConfig(2, MLPConfig(8), HashConfig(1, (1,) * ids)))


def test_a_hash_of_the_vocabulary_is_built():
    assert _hashed(GPT2, tiny.VOCAB).experts
    assert dataclasses.replace(T5, encoder=_hashed(T5.encoder, tiny.VOCAB)).encoder.experts


T5_OTHER = ScoresConfig(bias=RelativeBiasConfig(16, 32, bidirectional=True))
REFUSED = {
    "a tied head without a vocabulary": (
        lambda: dataclasses.replace(GPT2, vocab_size=None),
        "vocab_size is None and head TiedHead requires a vocabulary: set vocab_size, or head to None",
    ),
    "a hash of another vocabulary": (
        lambda: _hashed(GPT2, tiny.VOCAB + 1),
        f"router.counts has {tiny.VOCAB + 1} entries and vocab_size is {tiny.VOCAB}: set one count per id, or None",
    ),
    "a hash of another vocabulary in an encoder without a table": (
        lambda: dataclasses.replace(T5, encoder=_hashed(T5.encoder, tiny.VOCAB - 1)),
        f"router.counts has {tiny.VOCAB - 1} entries and vocab_size is {tiny.VOCAB}",
    ),
    "a head without a vocabulary": (
        lambda: dataclasses.replace(GPT2, vocab_size=None, head=HeadConfig()),
        "vocab_size is None and head HeadConfig requires a vocabulary",
    ),
    "a narrow table that gives the scores": (
        lambda: dataclasses.replace(GPT2, embed=EmbedConfig(factorized=FactorizedConfig(8))),
        "embed.factorized.width is 8 and width 16: a tied head requires a `transform`",
    ),
    "tables of biases that differ": (
        _two_biases,
        "blocks have different relative biases .*: the layers of a stack share",
    ),
    "a bias of places in what reads another row": (
        lambda: CrossAttentionConfig(2, 4, 2, scores=T5_OTHER),
        "cross.scores.bias is a RelativeBiasConfig: cross-attention has no relative positions",
    ),
    "an encoder with scores": (
        lambda: dataclasses.replace(BART, encoder=dataclasses.replace(BART.encoder, head=ClassHead(2))),
        "encoder.head is ClassHead.*: only the decoder has a head; set it to None",
    ),
    "a decoder that reads nothing": (
        lambda: dataclasses.replace(BART, decoder=GPT2),
        "no block of the decoder has `cross` attention: at least one is required to read the encoder output",
    ),
    "other widths": (
        lambda: dataclasses.replace(BART, encoder=dataclasses.replace(BART.encoder, width=8)),
        "encoder.width is 8 and decoder.width 16: they must be equal",
    ),
    "a decoder without a table": (
        lambda: dataclasses.replace(BART, decoder=dataclasses.replace(BART.decoder, vocab_size=None, head=None)),
        "decoder.vocab_size is None: the decoder requires a table",
    ),
    "a table of which only one side is narrow": (
        lambda: dataclasses.replace(
            BART,
            encoder=dataclasses.replace(
                BART.encoder, embed=dataclasses.replace(BART.encoder.embed, factorized=FactorizedConfig(8))
            ),
        ),
        "encoder and decoder share a table and embed.factorized differs between them",
    ),
    "a norm where the wiring has none": (
        lambda: dataclasses.replace(GPT2.segments[0].blocks[0], wiring=Chain()),
        "a wiring with norms requires a norm, a Chain requires None",
    ),
    "no norm where the wiring has some": (
        lambda: dataclasses.replace(GPT2.segments[0].blocks[0], norm=None),
        "norm is None and wiring Serial.*: a wiring with norms requires a norm",
    ),
    "no width of a narrow table": (lambda: FactorizedConfig(0), "width is 0"),
    "what is widened": (lambda: FactorizedConfig(8, "token"), "of is 'token': .* did you mean 'tokens'"),
    "types below zero": (lambda: EmbedConfig(types=-1), "types is -1: it must be 0 or greater"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_parts_that_do_not_fit_together_are_refused(name):
    build, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        build()


def test_sizes_of_a_pair_are_those_of_its_sides():
    config = PAIRS["marian"]
    assert (config.width, config.vocab_size, config.max_length) == (16, tiny.VOCAB, tiny.MAX_LENGTH)
    assert config.stacks == (config.encoder, config.decoder) and BERT.stacks == (BERT,)
    assert config.decoder.has_cross_attention and not config.encoder.has_cross_attention
    assert (
        T5.decoder.relative_bias == (RelativeBiasConfig(8, 12, init=UniformGlorot()), 4) and BERT.relative_bias is None
    )


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


def test_with_kernel_changes_every_block_and_nothing_else():
    config = gpt2(4, 2, 16, windows=(None, 4))
    other = config.with_kernel(ChunkedKernel(64))
    kernels = [block.mixer.kernel for segment in other.segments for block in segment.blocks]
    assert kernels == [ChunkedKernel(64)] * 2
    assert other != config and other.with_kernel(BlockedKernel()) == config


def test_with_mask_changes_every_block_and_needs_masks():
    config = gpt2(4, 2, 16, windows=(None, 4))
    other = config.with_mask(PrefixCausal())
    assert other.prefixed and other.causal and not config.prefixed and not other.permuted
    assert dataclasses.replace(other, segments=config.segments) == config
    with pytest.raises(ValueError, match="mixers of the model are of type LSTMConfig, which has no mask"):
        EVERY["lstm"].with_mask(PrefixCausal())

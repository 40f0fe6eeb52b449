"""Sizes and costs from the config alone, against the model and the compiler."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.core.dtypes import MIXED, Precision
from llm_jax.layers.roles import unboxed
from llm_jax.models import count
from llm_jax.models.build import abstract_parameters, build
from llm_jax.models.config import EncoderDecoderConfig, ModelConfig, TransformerConfig
from llm_jax.models.families.albert import albert
from llm_jax.models.families.bart import bart
from llm_jax.models.families.gpt2 import gpt2
from llm_jax.models.families.llama import llama
from llm_jax.models.inputs import Inputs
from llm_jax.models.multi_token_heads import ChainedHeads, ParallelHeads
from llm_jax.models.stack import Execution, Segment
from tests.helpers.published import EVERY, described, executed


def _two_segments() -> TransformerConfig:
    one, other = llama(2, 4, 16, hidden=24, kv_heads=1), gpt2(1, 2, 16)
    blocks = (*one.segments[0].blocks, *other.segments[0].blocks)
    return dataclasses.replace(one, segments=(Segment(blocks, 3), *other.segments))


CONFIGS = EVERY | {
    "gpt2 without biases": gpt2(3, 2, 8, vocab_size=11, max_length=7, bias=False),
    "llama, tied": llama(1, 2, 8, hidden=12, vocab_size=13, tied=True),
    "llama, multi-query": llama(3, 4, 16, hidden=40, kv_heads=1),
    "several blocks and segments": _two_segments(),
    "several blocks and segments, parallel heads": dataclasses.replace(_two_segments(), multi_token=ParallelHeads(4)),
    "chained heads": dataclasses.replace(llama(2, 2, 8, hidden=12, vocab_size=13), multi_token=ChainedHeads(3)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_model(name):
    assert count.parameters(CONFIGS[name]) == trees.count(unboxed(described(CONFIGS[name])))


@pytest.mark.parametrize("precision", [Precision(), MIXED])
@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if config.stacks[-1].causal])
def test_cache_bytes_are_those_of_the_cache(name, precision):
    config = CONFIGS[name]
    memory = (5,) if isinstance(config, EncoderDecoderConfig) else ()
    cache = jax.eval_shape(lambda: build(config, precision).allocate(3, 5, *memory))
    assert 3 * count.cache_bytes(config, 5, precision) == trees.size_bytes(cache.layers)


# Wide and shallow, so that what is no matrix product (norms, softmax) costs little beside it.
LENGTH = 64
BIG = {
    "gpt2": gpt2(2, heads=2, width=128, vocab_size=512, max_length=LENGTH),
    "llama": llama(2, heads=2, width=128, hidden=384, kv_heads=1, vocab_size=512, max_length=LENGTH),
    "albert": albert(2, heads=2, width=128, narrow=64, vocab_size=512, max_length=LENGTH),
    "bart": bart(2, heads=2, width=128, vocab_size=512, max_length=LENGTH, decoder_layers=3),
}


def _compiler_flops(config: ModelConfig, gradient: bool) -> float:
    # Written out, as the compiler counts the body of a loop once.
    model = build(executed(config, Execution(unroll=99)))
    shapes, _ = abstract_parameters(model)
    tokens = Inputs(jax.ShapeDtypeStruct((1, LENGTH), jnp.int32))
    inputs = tokens.replace(encoder=tokens) if isinstance(config, EncoderDecoderConfig) else tokens
    function = lambda params, inputs: model.apply({"params": params}, inputs).logits_BTV.sum()  # noqa: E731
    lowered = jax.jit(jax.grad(function) if gradient else function).lower(shapes, inputs)
    assert "stablehlo.while" not in lowered.as_text()
    return lowered.cost_analysis()["flops"]


def _unmasked(config: ModelConfig) -> float:
    """What PlainKernel spends on pairs that the mask forbids: it makes all LENGTH scores, the count only those that
    are allowed, (LENGTH + 1) / 2 on average where the mask is causal."""
    config = config.decoder if isinstance(config, EncoderDecoderConfig) else config
    pairs = LENGTH - config.segments[0].blocks[0].mixer.mask.pairs(LENGTH)
    mixer = config.segments[0].blocks[0].mixer
    return LENGTH * config.depth * 4 * mixer.heads * mixer.head_dim * pairs


@pytest.mark.parametrize("name", BIG)
def test_forward_flops_are_those_of_the_compiler(name):
    config = BIG[name]
    counted = count.forward_flops(config, LENGTH) * LENGTH
    compiled = _compiler_flops(config, gradient=False)
    np.testing.assert_allclose(compiled, counted + _unmasked(config), rtol=0.04)
    assert compiled > counted + _unmasked(config)  # the products are all there, the rest comes on top


@pytest.mark.parametrize("name", BIG)
def test_training_costs_three_forward_passes(name):
    config = BIG[name]
    counted = count.training_flops(config, LENGTH) * LENGTH
    assert counted == 3 * count.forward_flops(config, LENGTH) * LENGTH
    np.testing.assert_allclose(_compiler_flops(config, gradient=True), counted + 3 * _unmasked(config), rtol=0.06)


def test_flops_of_a_large_model_are_near_to_six_per_parameter():
    config = llama(32, 32, 4096, hidden=11008)
    embedding = config.vocab_size * config.width
    per_parameter = count.training_flops(config, 1) / (count.parameters(config) - embedding)
    np.testing.assert_allclose(per_parameter, 6, rtol=0.001)
    # Attention adds 6 * layers * width * length for causal rows (half of PaLM's 12, which count the masked pairs).
    more = count.training_flops(config, 2048) - count.training_flops(config, 1)
    np.testing.assert_allclose(more, 6 * 32 * 4096 * 2047)

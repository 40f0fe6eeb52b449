"""A generator and a discriminator with one embedding: two encoders, each as it would be alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.core.config_text import parse, to_text
from llm_jax.layers.attention.masks import Causal
from llm_jax.layers.embed import EmbedConfig, FactorizedConfig
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models import count
from llm_jax.models.build import abstract_parameters, applied, build
from llm_jax.models.config import GeneratorDiscriminatorConfig
from llm_jax.models.dropout import Rates, rates_of, with_dropout
from llm_jax.models.families.bert import bert, discriminator, electra
from llm_jax.models.heads import ClassHead, TiedHead
from llm_jax.models.inputs import Inputs
from llm_jax.models.stack import Execution
from tests.helpers import tiny

SIZES = {"vocab_size": 32, "max_length": 16}
CONFIGS = {"narrow": electra(2, 4, 16, narrow=8, **SIZES), "wide": electra(2, 4, 16, **SIZES)}
PLACES = np.array([[0, 1, 2, 0, 1, 2, 3, 0]]), np.array([[1, 1, 1, 2, 2, 2, 2, 0]])
INPUTS = Inputs(tiny.tokens(1, 8), SequenceInfo(*PLACES))


@pytest.mark.parametrize("name", CONFIGS)
def test_each_is_the_encoder_that_it_would_be_alone(name):
    narrow = 8 if name == "narrow" else None
    model = build(CONFIGS[name])
    params = tiny.parameters(model)
    generator, found = params["generator"], params["discriminator"]
    # The generator has a quarter of the width, and the embedding of the discriminator before its projection.
    embed = {part: leaf for part, leaf in found["embed"].items() if part != "widen"} | generator["embed"]
    alone = build(bert(2, 1, 4, narrow=narrow or 16, **SIZES))
    weights = {"embed": embed, "stack": generator["stack"], "head": params["generator_head"]}

    def logits(params):
        hidden_BTD = applied(model, params, INPUTS, method="generator_hidden").hidden_BTD
        head = model.generator_unembed_parameters(params)
        return applied(model, head, hidden_BTD, method="generator_unembed")

    expected = jax.jit(lambda weights: applied(alone, weights, INPUTS).logits_BTV)(weights)
    np.testing.assert_allclose(jax.jit(logits)(params), expected, atol=1e-4)
    alone = build(bert(2, 4, 16, narrow=narrow, head=discriminator(), **SIZES))
    expected = jax.jit(lambda weights: applied(alone, weights, INPUTS).logits_BTV)(found)
    output = jax.jit(lambda params: applied(model, params, INPUTS))(params)
    np.testing.assert_allclose(output.logits_BTV, expected, atol=1e-4)
    head = model.unembed_parameters(params)
    np.testing.assert_allclose(applied(model, head, output.hidden_BTD, method="unembed"), expected, atol=1e-4)


WIDE = electra(2, 4, 128, share=0.5, narrow=64, vocab_size=512, max_length=64)


@pytest.mark.parametrize("config", [*CONFIGS.values(), WIDE], ids=[*CONFIGS, "large"])
def test_parameters_are_those_of_the_model(config):
    shapes, _ = abstract_parameters(build(config))
    assert count.parameters(config) == count.active_parameters(config) == trees.count(shapes)


def test_flops_are_those_of_the_compiler():
    unrolled = lambda stack: dataclasses.replace(stack, execution=Execution(unroll=9))  # noqa: E731
    config = dataclasses.replace(WIDE, generator=unrolled(WIDE.generator), discriminator=unrolled(WIDE.discriminator))
    model = build(config)

    def scores(params, tokens):
        hidden_BTD = applied(model, params, tokens, method="generator_hidden").hidden_BTD
        return applied(model, params, hidden_BTD, method="generator_unembed"), applied(model, params, tokens).logits_BTV

    shapes, _ = abstract_parameters(model)
    compiled = jax.jit(scores).lower(shapes, jax.ShapeDtypeStruct((1, 64), jnp.int32)).cost_analysis()["flops"]
    counted = 64 * count.forward_flops(config, 64)
    assert 1 < compiled / counted < 1.05


def test_published_sizes():
    """Table 6 and section 3.3: generators of a quarter and of a third."""
    small, base = electra(12, 4, 256, narrow=128), electra(12, 12, 768, share=1 / 3)
    assert (small.generator.width, base.generator.width) == (64, 256)
    heads = [stack.segments[0].blocks[0].mixer.shape for stack in (small.generator, base.generator)]
    assert heads[0] != heads[1]
    # The small discriminator has 14M parameters, the base one 110M.
    for config, size in ((small, 14e6), (base, 110e6)):
        alone = count.parameters(config.discriminator)
        assert alone == pytest.approx(size, rel=0.05) and alone < count.parameters(config) < 1.35 * alone


def test_the_flat_text_is_the_whole_of_it():
    assert parse(to_text(CONFIGS["narrow"])) == CONFIGS["narrow"]
    assert [stack.width for stack in CONFIGS["narrow"].stacks] == [4, 16] and CONFIGS["narrow"].max_length == 16


def test_dropout_rates_are_set_in_both_and_the_embedding_once():
    config = with_dropout(CONFIGS["narrow"], Rates(embed=0.1, residual=0.2))
    assert (config.generator.embed.dropout, config.discriminator.embed.dropout) == (0.0, 0.1)
    assert {rates_of(stack).residual for stack in config.stacks} == {0.2}


CONFIG = CONFIGS["narrow"]
REFUSED = {
    "generator is not an encoder": {"generator": CONFIG.generator.with_mask(Causal())},
    "discriminator is not an encoder": {"discriminator": CONFIG.discriminator.with_mask(Causal())},
    "generator.vocab_size is 32": {"generator": dataclasses.replace(CONFIG.generator, vocab_size=32)},
    "generator.embed has positions, types, a norm or a scale": {
        "generator": dataclasses.replace(CONFIG.generator, embed=EmbedConfig(types=2, factorized=FactorizedConfig(8)))
    },
    "generator.embed reads vectors of 4 features and the embedding of the discriminator has 8": {
        "generator": dataclasses.replace(CONFIG.generator, embed=EmbedConfig())
    },
    r"discriminator.head is ClassHead\(classes=2": {
        "discriminator": dataclasses.replace(CONFIG.discriminator, head=ClassHead(2))
    },
    "discriminator.vocab_size is None": {"discriminator": dataclasses.replace(CONFIG.discriminator, vocab_size=None)},
    "`head` requires a `transform` from the one to the other": {"head": TiedHead()},
}


@pytest.mark.parametrize("message", REFUSED)
def test_parts_that_do_not_fit_are_refused(message):
    assert isinstance(CONFIG, GeneratorDiscriminatorConfig)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **REFUSED[message])

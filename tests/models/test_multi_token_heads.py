"""Modules that predict tokens after the next one: what they compute, read and cost."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.core.config_text import parse, to_text
from llm_jax.inference.generate import Generator
from llm_jax.inference.sampling import SamplingConfig
from llm_jax.layers.attention.masks import Bidirectional
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models import count
from llm_jax.models.build import abstract_parameters, applied, build
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.albert import albert
from llm_jax.models.families.llama import llama
from llm_jax.models.families.t5 import t5
from llm_jax.models.heads import ClassHead
from llm_jax.models.inputs import Inputs
from llm_jax.models.multi_token_heads import ChainedHeads, ParallelHeads
from llm_jax.models.stack import Execution, Segment
from tests.helpers import tiny

LENGTH = 10


def in_two(config: TransformerConfig) -> TransformerConfig:
    """The model with its last block in a segment of its own."""
    (segment,) = config.segments
    segments = dataclasses.replace(segment, repeats=segment.repeats - 1), dataclasses.replace(segment, repeats=1)
    return dataclasses.replace(config, segments=segments)


HEADS = {"chained": ChainedHeads(3), "parallel": ParallelHeads(3)}
PLAIN = {"llama": in_two(tiny.tiny_llama()), "gpt2": in_two(tiny.tiny_gpt2())}


def config_of(heads: str, family: str = "llama") -> TransformerConfig:
    return dataclasses.replace(PLAIN[family], multi_token=HEADS[heads])


@functools.cache
def model_of(heads: str, family: str = "llama"):
    model = build(config_of(heads, family))
    return model, tiny.parameters(model)


def hidden_of(model, params, inputs):
    return jax.jit(lambda inputs: applied(model, params, inputs, method="multi_token_hidden"))(inputs)


def without(params):
    return {name: part for name, part in params.items() if name != "multi_token"}


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize("heads", HEADS)
def test_the_ordinary_forward_pass_and_generation_are_those_of_the_model_without_them(heads, family):
    model, params = model_of(heads, family)
    plain, tokens = build(PLAIN[family]), tiny.tokens(2, LENGTH)
    assert "multi_token" in params and "multi_token" not in abstract_parameters(plain)[0]
    found = jax.jit(lambda: applied(model, params, tokens).logits_BTV)()
    np.testing.assert_array_equal(found, jax.jit(lambda: applied(plain, without(params), tokens).logits_BTV)())
    output, _ = hidden_of(model, params, tokens)
    np.testing.assert_allclose(applied(model, params, output.hidden_BTD, method="unembed"), found, atol=1e-5)


@pytest.mark.parametrize("heads", HEADS)
def test_generation_is_that_of_the_model_without_them(heads):
    model, params = model_of(heads)
    said = [
        Generator(one, SamplingConfig(temperature=1.0), None, 0).generate(weights, [[1, 2, 3]], 8)
        for one, weights in ((model, params), (build(PLAIN["llama"]), without(params)))
    ]
    assert said[0] == said[1] and len(set(said[0][0])) > 2


def test_a_parallel_head_is_the_last_segment_with_other_weights():
    model, params = model_of("parallel", "gpt2")
    tokens, plain = tiny.tokens(2, LENGTH), build(PLAIN["gpt2"])
    output, ahead = hidden_of(model, params, tokens)
    assert len(ahead) == 2
    for token, hidden_BTD in enumerate(ahead, start=2):
        weights = without(params)
        stack = weights["stack"] | {"segment_1": params["multi_token"][f"token_{token}"]}
        replaced = jax.jit(lambda weights: applied(plain, weights, tokens).hidden_BTD)(weights | {"stack": stack})
        np.testing.assert_allclose(hidden_BTD, replaced, atol=2e-5)
        assert np.abs(hidden_BTD - output.hidden_BTD).max() > 0.1


def _rms(x, scale):
    return x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + 1e-6) * scale


def test_a_chained_module_is_a_block_on_the_hidden_states_before_and_the_tokens_after():
    """DeepSeek-V3, eq. 21 and 22, with a model of one block as eq. 22's block."""
    model, params = model_of("chained")
    tokens = tiny.tokens(2, LENGTH)
    output, ahead = hidden_of(model, params, tokens)
    table, own = np.asarray(params["embed"]["table"]), jax.tree.map(np.asarray, params["multi_token"])
    block = build(dataclasses.replace(PLAIN["llama"], segments=PLAIN["llama"].segments[1:], final_norm=None))
    before = np.asarray(output.hidden_BTD)
    for k, hidden_BTD in enumerate(ahead, start=1):
        scale = lambda part, k=k: own[f"token_{k + 1}_{part}"]["scale"]  # noqa: E731
        shifted = np.concatenate([tokens[:, k:], np.zeros_like(tokens[:, :k])], axis=1)
        both = _rms(before, scale("hidden_norm")), _rms(table[shifted], scale("embedding_norm"))
        x_BTD = np.concatenate(both, axis=-1) @ own[f"token_{k + 1}_joint"]["kernel"]
        weights = without(params) | {"stack": {"segment_0": own[f"token_{k + 1}"]}}
        run = jax.jit(lambda weights, x: applied(block, weights, Inputs(features_BTE=x)).hidden_BTD)
        before = np.asarray(run(weights, x_BTD.astype(np.float32)))
        # The last k tokens have none to read.
        expected = _rms(before, scale("final_norm"))[:, :-k]
        np.testing.assert_allclose(hidden_BTD[:, :-k], expected, atol=1e-4)


def influence(model, params, sequence: SequenceInfo) -> np.ndarray:
    """Whether hidden state t of each module depends on token s, bool [modules, T, T]; all tokens differ."""
    tokens = jnp.arange(LENGTH)[None]

    def scores(table: jax.Array) -> jax.Array:
        weights = params | {"embed": params["embed"] | {"table": table}}
        _, ahead = applied(model, weights, Inputs(tokens, sequence), method="multi_token_hidden")
        return jnp.stack([hidden_BTD[0] @ jnp.sin(1.0 + jnp.arange(16)) for hidden_BTD in ahead])

    table = params["embed"]["table"]
    return np.abs(jax.jit(jax.jacrev(scores))(table)[:, :, :LENGTH]).max(axis=-1) > 0


@pytest.mark.parametrize("cut", [LENGTH, 4])
@pytest.mark.parametrize("heads", HEADS)
def test_no_module_reads_the_token_that_it_predicts_nor_another_document(heads, cut):
    model, params = model_of(heads)
    places = np.arange(LENGTH)
    positions, segments = np.where(places < cut, places, places - cut), 1 + (places >= cut)
    found = influence(model, params, SequenceInfo(positions[None], segments[None]))
    for k, reads in enumerate(found, start=1):
        # Module k predicts token t + k + 1; a chain has read token t + k.
        last = places + (k if heads == "chained" else 0)
        own = (segments[:, None] == segments) & (places <= last[:, None])
        counted = np.append(segments[k:], np.zeros(k)) == segments
        np.testing.assert_array_equal(reads[counted], own[counted])


def test_all_that_is_before_a_token_is_read_with_learned_positions_too():
    model, params = model_of("chained", "gpt2")
    places = np.arange(LENGTH)
    reads = influence(model, params, SequenceInfo(places[None]))
    np.testing.assert_array_equal(reads[1][:-2], places <= places[:-2, None] + 2)


WIDE = llama(2, heads=2, width=128, hidden=384, kv_heads=1, vocab_size=512, max_length=64)
NARROW = albert(2, heads=2, width=128, narrow=64, vocab_size=512, max_length=64)


@pytest.mark.parametrize("heads", HEADS)
def test_parameters_and_flops_are_those_of_the_model(heads):
    config = dataclasses.replace(in_two(WIDE), multi_token=HEADS[heads], execution=Execution(unroll=9))
    model = build(config)
    shapes, _ = abstract_parameters(model)
    sizes = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert count.multi_token_parameters(config) == sizes(shapes["multi_token"])
    assert count.parameters(config) == sizes(shapes)
    assert count.active_parameters(config) == count.active_parameters(in_two(WIDE)) == sizes(without(shapes))

    def scores(params, tokens):
        output, ahead = applied(model, params, tokens, method="multi_token_hidden")
        return [applied(model, params, x_BTD, method="unembed").sum() for x_BTD in (output.hidden_BTD, *ahead)]

    compiled = jax.jit(scores).lower(shapes, jax.ShapeDtypeStruct((1, 64), jnp.int32)).cost_analysis()["flops"]
    # The plain kernel computes the masked pairs too, in each of two layers and two modules.
    masked = 64 * 4 * 4 * 2 * 64 * (64 - 65 / 2)
    counted = 64 * (count.forward_flops(config, 64) + count.multi_token_flops(config, 64))
    assert count.forward_flops(config, 64) == count.forward_flops(in_two(WIDE), 64)
    assert compiled == pytest.approx(counted + masked, rel=0.05)


def test_a_chain_widens_a_narrow_embedding_for_each_module():
    config = dataclasses.replace(NARROW, segments=WIDE.segments)
    chained, flops = dataclasses.replace(config, multi_token=ChainedHeads(3)), count.multi_token_flops
    wide = dataclasses.replace(chained, embed=WIDE.embed, head=WIDE.head)
    logits = [
        count.forward_flops(one, 1) - count.forward_flops(dataclasses.replace(one, head=None, multi_token=None), 1)
        for one in (chained, wide)
    ]
    assert flops(chained, 1) - 2 * logits[0] == flops(wide, 1) - 2 * logits[1] + 2 * 2 * 64 * 128


@pytest.mark.parametrize("heads", HEADS)
def test_remat_saves_memory_and_changes_nothing(heads):
    (_, params), tokens, found = model_of(heads), tiny.tokens(2, LENGTH), []
    for execution in (Execution(unroll=1), Execution(unroll=9, remat=("none", "full"))):
        model = build(dataclasses.replace(config_of(heads), execution=execution))

        def loss(params, model=model):
            _, ahead = applied(model, params, tokens, method="multi_token_hidden")
            return sum(jnp.square(x_BTD).sum() for x_BTD in ahead)

        kept = jax.eval_shape(lambda loss=loss: jax.vjp(loss, params)[1])
        found.append((trees.size_bytes(kept), jax.jit(jax.grad(loss))(params)))
    (plain, one), (less, other) = found
    assert less < 0.7 * plain
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3), one, other)


def test_a_model_without_them_has_no_hidden_states_of_later_tokens():
    model = build(PLAIN["llama"])
    output, ahead = hidden_of(model, tiny.parameters(model), tiny.tokens(1, 4))
    assert ahead == () and output.trunk_BTD is None


@pytest.mark.parametrize("heads", HEADS)
def test_flat_text_is_the_whole_of_them(heads):
    assert parse(to_text(config_of(heads))) == config_of(heads)


def test_features_are_refused_by_modules_that_read_tokens():
    model, params = model_of("chained")
    with pytest.raises(ValueError, match="ChainedHeads read the next tokens, and the inputs have features only"):
        hidden_of(model, params, Inputs(features_BTE=jnp.zeros((1, 4, 16))))


LLAMA = tiny.tiny_llama()
REFUSED = {
    "tokens is 0": lambda: ChainedHeads(0),
    "the model has one segment and multi_token is ParallelHeads": lambda: dataclasses.replace(
        LLAMA, multi_token=ParallelHeads()
    ),
    "multi_token is ChainedHeads and AttentionConfig is not causal": lambda: dataclasses.replace(
        LLAMA.with_mask(Bidirectional()), multi_token=ChainedHeads()
    ),
    "vocab_size is 32 and head is ClassHead: its modules share embedding and head": lambda: dataclasses.replace(
        LLAMA, head=ClassHead(2), multi_token=ChainedHeads()
    ),
    "blocks have `cross` attention: only a model without an encoder": lambda: dataclasses.replace(
        t5(2, 4, 16, hidden=24).decoder, multi_token=ChainedHeads()
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_models_for_which_they_mean_nothing_are_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


def test_a_last_segment_of_several_blocks_is_a_head_of_as_many():
    trunk = LLAMA.segments[0]
    config = dataclasses.replace(LLAMA, segments=(trunk, Segment(trunk.blocks, 2)), multi_token=ParallelHeads(2))
    shapes, _ = abstract_parameters(build(config))
    assert jax.tree.map(jnp.shape, shapes["multi_token"]["token_2"]) == jax.tree.map(
        jnp.shape, shapes["stack"]["segment_1"]
    )

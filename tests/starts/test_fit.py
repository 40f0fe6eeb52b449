"""Weights that exist become the parameters of a model that may differ from theirs in what is named."""

import contextlib
import dataclasses

import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.core.configclass import configclass
from llm_jax.interop import load_hf, save_hf
from llm_jax.models.architecture import architecture
from llm_jax.models.build import build
from llm_jax.models.config import ModelConfig
from llm_jax.models.families.bert import bert, electra
from llm_jax.models.families.gpt2 import gpt2
from llm_jax.models.families.llama import llama
from llm_jax.models.heads import ClassHead
from llm_jax.models.multi_token_heads import ChainedHeads
from llm_jax.starts import HuggingFaceStart
from llm_jax.starts.fit import Fit
from llm_jax.starts.start import Start, Weights, check_tokens
from llm_jax.tokenizers.character import CharacterTokenizer
from llm_jax.tokenizers.pipelines import token_ids
from tests.helpers import tiny

THERE = llama(2, 2, 8, hidden=12, vocab_size=30, max_length=16)
HEAD = "head/kernel"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("start")
    model = build(THERE)
    save_hf(model, tiny.parameters(model), path / "dense")
    return str(path / "dense")


def _leaves(params):
    return {name: np.asarray(leaf) for name, leaf in trees.named_leaves(params)}


def _fitted(folder, config, seed=3, **options):
    """The fit, the parameters that it gives, those that were there, and those of a run of the seed without a start."""
    fit = Fit.of(HuggingFaceStart(folder=folder, **options), build(config))
    names = set(_leaves(tiny.parameters(build(config))))
    whole = Fit(fit.weights, build(config), tuple(names), (), False)
    there = fit.weights.load(fit.model.precision)
    return fit, *map(_leaves, (fit.parameters(seed), there, whole.parameters(seed)))


def test_without_differences_every_array_is_loaded(folder):
    fit, params, there, _ = _fitted(folder, THERE)
    assert params.keys() == there.keys() and HEAD in params
    for name, value in params.items():
        np.testing.assert_array_equal(value, there[name], err_msg=name)
    assert fit.facts() == {"weights": folder, "loaded": len(params), "drawn": [], "resized": []}


def test_what_is_named_is_drawn_as_in_a_run_without_a_start(folder):
    fit, params, there, drawn = _fitted(folder, THERE, fresh=("head", "stack/segment_0/block_0/ffn"))
    named = {name for name in params if name.startswith(("head/", "stack/segment_0/block_0/ffn/"))}
    assert set(fit.drawn) == named and len(named) == 4
    for name, value in params.items():
        np.testing.assert_array_equal(value, (drawn if name in named else there)[name], err_msg=name)
    assert (params[HEAD] != there[HEAD]).any()
    assert "drawn: " in str(fit) and HEAD in str(fit)


@pytest.mark.parametrize("size", [24, 37])
def test_a_vocabulary_of_another_size_keeps_the_rows_that_both_have(folder, size):
    config = dataclasses.replace(THERE, vocab_size=size)
    with pytest.raises(ValueError, match="vocab_size: "):
        Fit.of(HuggingFaceStart(folder=folder), build(config))
    fit, params, there, drawn = _fitted(folder, config, resized_vocabulary=True)
    assert set(fit.resized) == {"embed/table", HEAD}
    common = min(size, 30)
    for name, value in params.items():
        if name == "embed/table":
            np.testing.assert_array_equal(value, np.concatenate([there[name][:common], drawn[name][common:]]))
        elif name == HEAD:
            np.testing.assert_array_equal(value, np.concatenate([there[name][:, :common], drawn[name][:, common:]], 1))
        else:
            np.testing.assert_array_equal(value, there[name], err_msg=name)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (THERE, {"fresh": ("haed",)}, "no parameter name of the model starts with it; did you mean 'head'"),
        (THERE, {"fresh": ("",)}, "empty name"),
        (llama(2, 2, 16, hidden=12, vocab_size=30, max_length=16), {}, "width: 16 -> 8"),
        (llama(2, 2, 8, hidden=12, vocab_size=30, max_length=16, tied=True), {}, "head"),
        (gpt2(2, 2, 8, vocab_size=30, max_length=16), {}, "another model"),
    ],
)
def test_other_differences_are_refused_by_name(folder, config, options, message):
    with pytest.raises(ValueError, match=message):
        Fit.of(HuggingFaceStart(folder=folder, **options), build(config))


@configclass
class _GivenStart(Start):
    """A start from the random weights of a model."""

    model: ModelConfig

    def find(self):
        load = lambda precision: tiny.parameters(build(self.model, precision))  # noqa: E731
        return Weights("weights", self.model, dict, None, load)


AHEAD = dataclasses.replace(THERE, multi_token=ChainedHeads(2))


def test_modules_that_predict_later_tokens_are_added_by_name_and_left_out_without():
    named = lambda start, config: _leaves(Fit.of(start, build(config)).parameters(3))  # noqa: E731
    whole, plain = (_leaves(tiny.parameters(build(config))) for config in (AHEAD, THERE))
    for name, value in named(_GivenStart(model=AHEAD), THERE).items():
        np.testing.assert_array_equal(value, whole[name], err_msg=name)
    added = named(_GivenStart(model=THERE, fresh=("multi_token",)), AHEAD)
    assert added.keys() == whole.keys()
    for name, value in plain.items():
        np.testing.assert_array_equal(value, added[name], err_msg=name)
    with pytest.raises(ValueError, match="another model than the experiment's: multi_token"):
        Fit.of(_GivenStart(model=THERE), build(AHEAD))


PAIR = electra(1, 2, 8, narrow=4, vocab_size=30, max_length=16)


def test_a_discriminator_is_trained_further_without_its_generator():
    wanted = bert(1, 2, 8, narrow=4, vocab_size=30, max_length=16, head=ClassHead(3))
    found = Fit.of(_GivenStart(model=PAIR, fresh=("head",)), build(wanted))
    there, params = _leaves(tiny.parameters(build(PAIR))["discriminator"]), _leaves(found.parameters(3))
    assert all(name.startswith("head/") for name in found.drawn) and len(found.drawn) == 2
    for name in params.keys() - set(found.drawn):
        np.testing.assert_array_equal(params[name], there[name], err_msg=name)
    whole = _leaves(Fit.of(_GivenStart(model=PAIR), build(PAIR)).parameters(3))
    assert any(name.startswith("generator/") for name in whole)


def test_an_exported_discriminator_is_alone(tmp_path):
    params = tiny.parameters(build(PAIR))
    save_hf(build(PAIR), params, tmp_path / "exported")
    model, found = load_hf(tmp_path / "exported")
    assert architecture(model.config) == architecture(PAIR.discriminator)
    for name, value in _leaves(found).items():
        np.testing.assert_array_equal(value, _leaves(params["discriminator"])[name], err_msg=name)


def test_an_exported_model_has_no_modules_that_predict_later_tokens(tmp_path):
    params = tiny.parameters(build(AHEAD))
    save_hf(build(AHEAD), params, tmp_path / "exported")
    model, found = load_hf(tmp_path / "exported")
    assert architecture(model.config) == architecture(THERE)
    for name, value in _leaves(found).items():
        np.testing.assert_array_equal(value, _leaves(params)[name], err_msg=name)


def test_ids_that_both_have_must_be_the_same_tokens(folder):
    tokenizer = CharacterTokenizer("abcd")
    ids = token_ids(tokenizer.pipeline())
    fewer = {name: number for name, number in ids.items() if number < 5}
    moved = fewer | {"a": ids["b"], "b": ids["a"]}
    weights = HuggingFaceStart(folder=folder).find()
    for known, resized, fits in [
        (ids, False, 1),
        (fewer, False, 0),
        (fewer, True, 1),
        (moved, True, 0),
        ({}, False, 1),
    ]:
        found = dataclasses.replace(weights, tokens=known.copy)
        with contextlib.nullcontext() if fits else pytest.raises(ValueError, match="token .* has id"):
            check_tokens(found, tokenizer, resized)
    with pytest.raises(ValueError, match="was trained with tokenizer"):
        check_tokens(dataclasses.replace(weights, digest="another"), tokenizer, resized=False)

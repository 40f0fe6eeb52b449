"""Masks are filled with what a forward pass over one text finds likely."""

import dataclasses
import importlib.util

import jax
import numpy as np
import pytest

from llm_jax.inference.fill import MaskFiller
from llm_jax.interop import load_hf
from llm_jax.models.build import build
from llm_jax.models.heads import ClassHead
from tests.helpers import tiny
from tests.helpers.published import ENCODERS, PAIRS, PERMUTED, PUBLISHED
from tests.parity.torch_models import CASES

MASK, PAD = 31, 0
TEXTS = [[5, MASK, 9, 1, MASK, 4], [MASK, 7], list(range(1, 13)) + [MASK, 2]]
CONFIG = ENCODERS["roberta"]


@pytest.fixture(scope="module")
def params():
    return tiny.parameters(build(CONFIG), seed=2)


def test_probabilities_are_those_of_each_text_alone(params):
    model = build(CONFIG)
    found = MaskFiller(model, MASK, PAD, top=4).fill(params, TEXTS)
    for text, fillings in zip(TEXTS, found, strict=True):
        logits_BTV = model.apply({"params": params}, np.array([text], np.int32)).logits_BTV
        p_TV = np.asarray(jax.nn.softmax(logits_BTV))[0]
        assert [filling.position for filling in fillings] == [at for at, token in enumerate(text) if token == MASK]
        for filling in fillings:
            likely = np.argsort(-p_TV[filling.position])[:4]
            assert filling.tokens == likely.tolist()
            np.testing.assert_allclose(filling.probabilities, p_TV[filling.position][likely], rtol=1e-4)


def test_only_tokens_of_the_tokenizer_have_probability(params):
    ((first, second),) = MaskFiller(build(CONFIG), MASK, PAD, vocab_size=3, top=3).fill(params, TEXTS[:1])
    for filling in (first, second):
        assert sorted(filling.tokens) == [0, 1, 2]
        np.testing.assert_allclose(sum(filling.probabilities), 1, rtol=1e-5)
    assert first != second


def test_texts_share_a_program(params):
    filler = MaskFiller(build(CONFIG), MASK, PAD)
    for texts in (TEXTS, TEXTS[::-1], [[MASK] * 8] * 3):
        filler.fill(params, texts)
    assert filler._predict._cache_size() == 1


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_fillings_are_those_of_transformers(tmp_path):
    import torch

    theirs = CASES["bert, masked"].torch_model()
    theirs.save_pretrained(tmp_path)
    model, params = load_hf(tmp_path)
    text = [2, 50, 60, 4, 70, 80, 4, 3]
    with torch.no_grad():
        p_TV = theirs(torch.tensor([text])).logits[0].softmax(-1)
    (fillings,) = MaskFiller(model, 4, 0, top=6).fill(params, [text])
    for filling, at in zip(fillings, (3, 6), strict=True):
        best = p_TV[at].topk(6)
        assert filling.tokens == best.indices.tolist() and filling.position == at
        np.testing.assert_allclose(filling.probabilities, best.values, rtol=1e-3)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([[1, MASK], [1, 2]], "text 1 has no mask token 31"),
        ([[MASK] * 17], "the longest text has 17 tokens and the model's max_length is 16"),
        ([[MASK, 32]], "prompt 0 has token 32, and the model's tokens are 0 to 31"),
        ([[]], "a prompt is empty"),
    ],
)
def test_bad_texts_are_refused(params, texts, message):
    with pytest.raises(ValueError, match=message):
        MaskFiller(build(CONFIG), MASK, PAD).fill(params, texts)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (PUBLISHED["llama"], {}, "the model is causal: masks are filled by an encoder"),
        (PAIRS["t5"], {}, "the model is an encoder-decoder"),
        (PERMUTED["xlnet"], {}, "the model is trained on permutations"),
        (dataclasses.replace(CONFIG, head=ClassHead(3)), {}, "the model's head is ClassHead: filling masks requires"),
        (CONFIG, {"mask_id": 32}, "mask_id is 32: it must be a token of the model's vocabulary, from 0 to 31"),
        (CONFIG, {"vocab_size": 33}, "vocab_size is 33 and the model's is 32"),
        (CONFIG, {"top": 0}, "top is 0: it must be from 1 to 32"),
        (CONFIG, {"top": 33}, "top is 33: it must be from 1 to 32"),
    ],
)
def test_what_cannot_fill_masks_is_refused(config, options, message):
    with pytest.raises(ValueError, match=message):
        MaskFiller(build(config), **({"mask_id": MASK, "pad_id": PAD} | options))

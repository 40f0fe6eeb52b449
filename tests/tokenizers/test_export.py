"""Exported tokenizers give transformers the same ids and the same text, whatever the text."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_jax.tokenizers.tokenizer import DIGEST_KEY, Tokenizer

DIFFICULT = [
    "",
    " ",
    "  a  b\t\tc\n\n\n    d   ",
    "def f(x):\n    return x  # \u2581 is U+2581, \u2581\u2581 twice\n",
    "<s></s><pad><unk><0x41><bos><eos> are text",
    "e\u0301 \u00e9 \ufb01 \u2460 \u00bd \uff21 \u1e9e \u0130",  # NFC, NFD, compatibility characters, special cases
    "\u6f22\u5b57\u3002 \u0e44\u0e17\u0e22 \u0939\u093f\u0928\u094d\u0926\u0940 \u05e2\u05d1\u05e8\u05d9\u05ea",
    "\U0001f600\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U0001d54f",
    "\u0000\u0007\u007f\u0085\u00a0\u200b\u2028\u3000\ufeff\ufffd\U0010ffff",
    "a" * 50 + " " * 50 + "\n" * 20,
    "\u2585\u2581\u2580",
]
EXPORTED = ["byte", "bpe", "unigram", "phrases", "llama_like", "t5_like", "huggingface"]


@pytest.fixture(scope="module")
def loaded(request, tmp_path_factory):
    """loaded(name) -> (the tokenizer, what AutoTokenizer makes of its export)."""
    transformers = pytest.importorskip("transformers", reason="the extra [parity] is not installed")
    made = {}

    def load(name: str, tokenizer: Tokenizer):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            tokenizer.export(folder, max_length=64)
            made[name] = transformers.AutoTokenizer.from_pretrained(folder)
        return made[name]

    return load


@pytest.mark.parametrize("name", EXPORTED)
def test_ids_and_text_of_difficult_unicode_are_equal(name, loaded, request):
    ours = request.getfixturevalue(name)
    theirs = loaded(name, ours)
    for text in DIFFICULT:
        ids = ours.encode(text)
        assert theirs.encode(text) == ids, text
        if theirs.unk_token_id is None or theirs.unk_token_id not in ids:
            # SentencePiece writes ' \u2047 ' for its unknown piece.
            assert theirs.decode(ids) == ours.decode(ids), text


@pytest.mark.parametrize("name", EXPORTED)
def test_ids_of_real_files_are_equal(name, loaded, request, source_files):
    ours = request.getfixturevalue(name)
    for text in source_files[:2]:
        assert loaded(name, ours).encode(text[:20_000]) == ours.encode(text[:20_000])


@settings(deadline=None, max_examples=200, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("  \n\t\u2581aeé漢😀<s>")))
@pytest.mark.parametrize("name", ["byte", "bpe", "unigram", "phrases", "huggingface"])
def test_ids_of_any_text_are_equal(name, loaded, request, text):
    ours = request.getfixturevalue(name)
    assert loaded(name, ours).encode(text) == ours.encode(text)


def test_characters_of_the_alphabet_are_equal_and_others_an_error(character, loaded):
    theirs = loaded("character", character)
    assert theirs.encode(character.alphabet) == character.encode(character.alphabet)
    assert theirs.decode(theirs.encode("a b\nc")) == "a b\nc"
    with pytest.raises(Exception, match="UNK"):
        theirs.encode("\u6f22")


@pytest.mark.parametrize("name", [*EXPORTED, "character"])
def test_special_tokens_and_the_digest_come_along(name, loaded, request):
    ours = request.getfixturevalue(name)
    theirs = loaded(name, ours)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (ours.bos_id, ours.eos_id, ours.pad_id)
    assert theirs.model_max_length == 64
    assert theirs.decode([ours.bos_id, *ours.encode("a"), ours.eos_id], skip_special_tokens=True).strip() == "a"


def test_the_digest_is_that_of_the_tokenizer(byte, tmp_path):
    byte.export(tmp_path, 8)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())[DIGEST_KEY] == byte.digest

"""What holds for every tokenizer."""

import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_jax.core import config_text
from llm_jax.tokenizers import (
    ByteTokenizerConfig,
    CharacterTokenizerConfig,
    HuggingFaceTokenizerConfig,
    SentencePieceTokenizerConfig,
    TrainSentencePieceConfig,
    byte,
    character,
    sentencepiece,
)
from llm_jax.tokenizers.tokenizer import SpecialIds

_property = settings(
    deadline=None, max_examples=150, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
_text = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \t\n\r\0\u2581\u2585\ufffdaé漢😀"))

_HARD_TEXTS = [
    "",
    " ",
    "  two before, two after  ",
    "\ttabs\t\tinside\t",
    "unix\nwindows\r\nmac\r",
    "\n\n\n",
    "nul \0 and bell \a and escape \x1b",
    "\u2581 is SentencePiece's own space: a\u2581b \u2581\u2581",
    "\u2585 is its own unknown",
    "\ufffd replacement, \ufeff byte order mark, \ufffe no character, \U0010ffff the last one",
    "e\u0301 is not \u00e9; \ufb01 is not fi; \uff21 is not A; \u00a0 and \u3000 are no spaces",
    "漢字 नमस्ते العربية 👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "<s> </s> <pad> <unk> <0x41> <|endoftext|>",
]


@pytest.mark.parametrize("text", _HARD_TEXTS)
def test_hard_text_comes_back_exactly(lossless, text):
    assert lossless.decode(lossless.encode(text)) == text


@_property
@given(text=_text)
def test_any_text_comes_back_exactly(lossless, text):
    assert lossless.decode(lossless.encode(text)) == text


@pytest.mark.parametrize("text", _HARD_TEXTS)
def test_bytes_of_ids_add_up_to_those_of_the_text(lossless, text):
    ids = lossless.encode(text)
    assert sum(map(lossless.first_bytes, ids)) == len(text.encode())
    assert lossless.first_bytes(lossless.bos_id) == lossless.first_bytes(lossless.eos_id) == 0


def test_real_files_come_back_exactly(any_tokenizer, source_files):
    for text in source_files:
        assert any_tokenizer.decode(any_tokenizer.encode(text)) == text


def test_text_never_becomes_a_special_id(lossless):
    special = {lossless.bos_id, lossless.eos_id, lossless.pad_id}
    assert not special & set(lossless.encode("<s></s><pad><unk><|endoftext|> \0"))


def test_batch_equals_single(any_tokenizer, source_files):
    texts = [*(text[:3000] for text in source_files), "", "x"]
    batch = any_tokenizer.encode_batch(texts)
    assert [ids.dtype for ids in batch] == [np.int32] * len(texts)
    assert [ids.tolist() for ids in batch] == [any_tokenizer.encode(text) for text in texts]


def test_batch_equals_single_for_any_text(lossless):
    assert [ids.tolist() for ids in lossless.encode_batch(_HARD_TEXTS)] == [*map(lossless.encode, _HARD_TEXTS)]


CUTTING = ("byte", "character", "bpe", "phrases")


@pytest.fixture
def shortest_parts(monkeypatch):
    """Parts are as short as they may be."""
    for module in (byte, character, sentencepiece):
        monkeypatch.setattr(module, "_CHARACTERS_PER_PART", 1)


@pytest.mark.parametrize("name", CUTTING)
def test_the_ids_of_the_parts_are_the_ids_of_the_whole(name, request, source_files, shortest_parts):
    tokenizer = request.getfixturevalue(name)
    texts = source_files if name == "character" else [*source_files, *_HARD_TEXTS]
    for text in texts:
        parts = list(tokenizer.parts(text))
        assert "".join(parts) == text
        assert np.concatenate(tokenizer.encode_batch(parts)).tolist() == tokenizer.encode(text)
        # Few characters in a row can be one piece.
        assert max(map(len, parts)) < 400 and (len(text) < 400 or len(parts) > len(text) / 30)


@_property
@given(text=_text)
def test_the_ids_of_the_parts_of_any_text_are_the_ids_of_the_whole(bpe, phrases, shortest_parts, text):
    for tokenizer in (bpe, phrases):
        ids = np.concatenate(tokenizer.encode_batch(list(tokenizer.parts(text))))
        assert ids.tolist() == tokenizer.encode(text)


def test_tokenizers_that_look_at_the_whole_text_do_not_cut_it(unigram, t5_like, llama_like, source_files):
    for tokenizer in (unigram, t5_like, llama_like):
        assert list(tokenizer.parts(source_files[0])) == [source_files[0]]


def test_ids_lie_in_the_vocabulary(any_tokenizer, source_files):
    ids = any_tokenizer.encode(source_files[0])
    ids += [any_tokenizer.bos_id, any_tokenizer.eos_id, any_tokenizer.pad_id]
    assert min(ids) >= 0
    assert max(ids) < any_tokenizer.vocab_size


def test_special_ids_have_no_text(any_tokenizer):
    ids = any_tokenizer.encode("def")
    surrounded = [any_tokenizer.bos_id, *ids, any_tokenizer.eos_id, any_tokenizer.pad_id]
    assert any_tokenizer.decode(np.asarray(surrounded, np.int32)) == "def"
    assert any_tokenizer.decode([any_tokenizer.pad_id]) == ""


@pytest.mark.parametrize("name", ["byte", "character", "bpe", "unigram"])
def test_own_tokenizers_keep_special_ids_apart(name, request):
    tokenizer = request.getfixturevalue(name)
    assert len({tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}) == 3


def test_id_outside_the_vocabulary_is_refused(any_tokenizer):
    for wrong in (-1, any_tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"token id {wrong} is outside the vocabulary"):
            any_tokenizer.decode([wrong])


def test_lone_surrogate_is_refused(lossless):
    for encode in (lossless.encode, lambda text: lossless.encode_batch(["fine", text])):
        with pytest.raises(ValueError, match=r"lone surrogate U\+D800 at character 2"):
            encode("ab\ud800")


def test_digests_differ_between_tokenizers(byte, character, bpe, unigram, phrases):
    assert len({t.digest for t in (byte, character, bpe, unigram, phrases)}) == 5


def test_pickled_tokenizer_is_the_same(any_tokenizer):
    copy = pickle.loads(pickle.dumps(any_tokenizer))
    text = "def f(x):\n    return x"
    assert copy.digest == any_tokenizer.digest
    assert copy.encode(text) == any_tokenizer.encode(text)


def test_pickled_huggingface_still_reads_no_special_token_from_text(huggingface):
    copy = pickle.loads(pickle.dumps(huggingface))
    assert copy.encode("<|endoftext|>") == huggingface.encode("<|endoftext|>") != [huggingface.eos_id]


@pytest.mark.parametrize(
    "made",
    [
        TrainSentencePieceConfig(vocab_size=1000, kind="unigram", max_training_bytes=10**6),
        SentencePieceTokenizerConfig("a.model"),
        ByteTokenizerConfig(),
        CharacterTokenizerConfig("a.txt"),
        HuggingFaceTokenizerConfig("folder", eos="</s>"),
    ],
)
def test_configs_survive_the_run_directory_without_their_files(made):
    assert config_text.parse(config_text.to_text(made)) == made


def test_missing_special_ids_are_replaced():
    assert SpecialIds.choose(bos=None, eos=1, pad=0, unknown=2, source="t5") == SpecialIds(bos=0, eos=1, pad=0)
    assert SpecialIds.choose(bos=1, eos=2, pad=None, unknown=0, source="llama") == SpecialIds(bos=1, eos=2, pad=0)
    assert SpecialIds.choose(bos=None, eos=7, pad=None, unknown=None, source="gpt2") == SpecialIds(bos=7, eos=7, pad=7)
    with pytest.raises(ValueError, match="x has no end-of-document token"):
        SpecialIds.choose(bos=1, eos=None, pad=0, unknown=2, source="x")

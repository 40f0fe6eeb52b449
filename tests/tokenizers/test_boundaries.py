import itertools
import json

import numpy as np
import pytest

from llm_jax.tokenizers import HuggingFaceTokenizerConfig
from llm_jax.tokenizers.boundaries import sentence_ends, word_boundaries, word_numbers

TEXT = "def spaces(self, text):\n    # Two  spaces; isn't it? It is.   return text[1:]\n\n"


def words(tokenizer, text):
    """The text of each word of the ids of a text."""
    ids = np.array(tokenizer.encode(text))
    numbers = word_numbers(ids, np.zeros(len(ids)), word_boundaries(tokenizer))
    assert numbers[0] == 0 and set(np.diff(numbers)) <= {0, 1}
    groups = itertools.groupby(zip(numbers, ids, strict=True), key=lambda pair: pair[0])
    return ["".join(tokenizer.pieces[token] for _, token in group) for _, group in groups]


@pytest.mark.parametrize("name", ["byte", "character", "bpe", "unigram", "huggingface", "t5_like", "llama_like"])
def test_words_are_what_stands_between_white_space(name, request):
    tokenizer = request.getfixturevalue(name)
    found = [word.strip() for word in words(tokenizer, TEXT)]
    assert [word for word in found if word] == TEXT.split()


def test_pieces_are_the_text_that_an_id_adds(any_tokenizer):
    ids = any_tokenizer.encode(TEXT)
    assert "".join(any_tokenizer.pieces[token] for token in ids) == TEXT
    assert len(any_tokenizer.pieces) == any_tokenizer.vocab_size
    assert any_tokenizer.pieces[any_tokenizer.eos_id] == ""


def test_words_end_with_their_document_and_special_ids_are_words(byte):
    ids = np.array([*b"ab cd", byte.eos_id, *b"ef"])
    documents = np.array([1, 1, 1, 1, 2, 2, 2, 2])
    numbers = word_numbers(ids, documents, word_boundaries(byte))
    np.testing.assert_array_equal(numbers, [0, 0, 1, 2, 3, 4, 5, 5])
    assert len(word_numbers(ids[:0], documents[:0], word_boundaries(byte))) == 0


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory):
    """A tokenizer as BERT's."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra [hf] is not installed")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "fox", "##es", "sleep", "##s", ".", "don", "'", "t"]
    model = tokenizers.BertWordPieceTokenizer({name: index for index, name in enumerate(names)})
    folder = tmp_path_factory.mktemp("wordpiece")
    model.save(str(folder / "tokenizer.json"))
    specials = {"bos_token": "[CLS]", "eos_token": "[SEP]", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(specials))
    return HuggingFaceTokenizerConfig(str(folder)).build(list, folder, "")


def test_of_wordpiece_all_but_marked_pieces_begin_words(wordpiece):
    found = [word.strip() for word in words(wordpiece, "The foxes don't sleep.")]
    assert found == ["the", "foxes", "don", "'", "t", "sleep", "."]


@pytest.mark.parametrize("name", ["byte", "character", "bpe", "huggingface"])
def test_sentences_end_with_a_stop_or_a_line(name, request):
    tokenizer = request.getfixturevalue(name)
    ends = sentence_ends(tokenizer)
    assert ends.dtype == np.int32 and 0 < len(ends) < tokenizer.vocab_size / 4
    text = "One. Two! Three? Four\nFive"
    ids = np.array(tokenizer.encode(text))
    (places,) = np.nonzero(np.isin(ids, ends))
    cut = [tokenizer.decode(part.tolist()).strip() for part in np.split(ids, places + 1)]
    assert cut == ["One.", "Two!", "Three?", "Four", "Five"]

"""Tokens start where their text does."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.small_tokenizers import NAMES, tokenizer

TEXT = "The fox — wrote naïve programs; 日本 in  London!"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "word pieces"])
def test_the_tokens_from_a_start_on_decode_to_the_text_from_there(name):
    found = tokenizer(name)
    ids, starts = found.encode_with_offsets(TEXT)
    assert ids == found.encode(TEXT) and starts == sorted(starts) and starts[0] == 0
    for index in range(1, len(ids)):
        if starts[index] > starts[index - 1]:
            assert found.decode(ids[index:]).strip() == TEXT[starts[index] :].strip()


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30))
def test_bytes_start_at_their_character(text):
    # Nothing shows which of several bytes that decode to U+FFFD is the last one of it.
    text = text.replace("\N{REPLACEMENT CHARACTER}", "?")
    _, starts = tokenizer("byte").encode_with_offsets(text)
    assert starts == [index for index, character in enumerate(text) for _ in character.encode()]


def test_word_pieces_refer_to_the_text_before_it_was_normalised():
    found = tokenizer("word pieces")
    text = "\x00the\u200b  London"
    ids, starts = found.encode_with_offsets(text)
    assert found.decode(ids) == "the London"
    assert starts[0] == 1 and text.index("London") in starts


def test_a_text_that_is_changed_is_refused():
    with pytest.raises(ValueError, match="changes the text at character 3, from '▁fox' to ' fox'"):
        tokenizer("spaced").encode_with_offsets("the▁fox")

"""Streamed text equals decoded text, whatever the ids."""

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_jax.tokenizers.stream import StreamDecoder

_property = settings(
    deadline=None, max_examples=150, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _stream(tokenizer, ids, prompt=()):
    decoder = tokenizer.stream(prompt)
    return [*(decoder.push(token_id) for token_id in ids), decoder.flush()]


@_property
@given(data=st.data())
def test_parts_add_up_for_sampled_ids(any_tokenizer, data):
    # Low ids are the bytes in most vocabularies, and bytes are what may be cut amiss.
    size = any_tokenizer.vocab_size
    ids = data.draw(st.lists(st.integers(0, min(size, 300) - 1) | st.integers(0, size - 1), max_size=30))
    assert "".join(_stream(any_tokenizer, ids)) == any_tokenizer.decode(ids)


@_property
@given(text=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\0\u2581\ufffdé漢😀")))
def test_parts_add_up_for_text(lossless, text):
    assert "".join(_stream(lossless, lossless.encode(text))) == text


def test_a_character_of_several_tokens_appears_whole(byte):
    assert _stream(byte, byte.encode("é漢!")) == ["", "é", "", "", "漢", "!", ""]


def test_sentencepiece_byte_pieces_appear_whole(bpe):
    ids = bpe.encode("漢")
    assert len(ids) == 3
    assert _stream(bpe, ids) == ["", "", "漢", ""]


def test_text_is_shown_as_it_comes(any_tokenizer, source_files):
    ids = any_tokenizer.encode(source_files[0][:500])
    assert sum(map(bool, _stream(any_tokenizer, ids))) == len(ids)


def test_a_broken_character_is_replaced(byte):
    assert "".join(_stream(byte, [0xE6, 0xBC])) == byte.decode([0xE6, 0xBC]) == "\ufffd"
    assert "".join(_stream(byte, [0xE6, 0x41])) == byte.decode([0xE6, 0x41]) == "\ufffdA"


def test_a_prompt_is_continued_and_not_repeated(any_tokenizer, source_files):
    ids = any_tokenizer.encode(source_files[0][:400])
    whole = any_tokenizer.decode(ids)
    for cut in (0, 1, 7, len(ids)):
        assert any_tokenizer.decode(ids[:cut]) + "".join(_stream(any_tokenizer, ids[cut:], ids[:cut])) == whole


def test_a_character_begun_in_the_prompt_is_finished(byte):
    first, *rest = byte.encode("漢")
    assert _stream(byte, rest, [first]) == ["", "漢", ""]


def test_models_that_prefix_a_space_stream_the_spaces_between_words(llama_like):
    """LLaMA's models drop the first space of a text when decoding: a continuation must keep it."""
    prompt, continuation = llama_like.encode("return"), llama_like.encode("the value of self")
    assert llama_like.decode(continuation) == "the value of self"
    assert "".join(_stream(llama_like, continuation, prompt)) == " the value of self"


@_property
@given(data=st.data())
def test_parts_add_up_where_spaces_in_front_are_dropped(t5_like, llama_like, data):
    for tokenizer in (t5_like, llama_like):
        space, word = tokenizer.encode("_ the")[-1], tokenizer.encode("the")[-1]
        space_mark = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.content).piece_to_id("\u2581")
        some = st.sampled_from([space, word, space_mark, tokenizer.eos_id, 300])
        ids = data.draw(st.lists(some, max_size=10))
        assert "".join(_stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_cost_of_a_push_does_not_grow(byte):
    decoded = []
    decoder = StreamDecoder(lambda ids: decoded.append(len(ids)) or byte.decode(ids), lambda token_id: False)
    for _ in range(200):
        decoder.push(65)
    assert max(decoded) == 2


@pytest.mark.parametrize("name", ["llama_like", "t5_like", "bpe", "byte", "huggingface"])
def test_a_continuation_keeps_the_space_before_its_first_word(name, request):
    """Tokenizers that put a space in front of a text drop it from what they decode alone."""
    tokenizer = request.getfixturevalue(name)
    whole = tokenizer.encode("return the value")
    cut = next(n for n in range(1, len(whole)) if tokenizer.decode(whole[:n]) == "return")
    prompt, ids = [tokenizer.bos_id, *whole[:cut]], whole[cut:]
    assert tokenizer.continuation(prompt, ids) == " the value"
    assert tokenizer.continuation([tokenizer.bos_id], whole) == "return the value"


def test_a_continuation_is_not_what_its_ids_decode_to_alone(llama_like):
    whole = llama_like.encode("return the value")
    assert not llama_like.decode(whole[len(llama_like.encode("return")) :]).startswith(" ")

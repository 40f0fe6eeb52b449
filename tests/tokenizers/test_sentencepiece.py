"""Models made elsewhere."""

from pathlib import Path

import pytest
import sentencepiece

from llm_jax.tokenizers import SentencePieceTokenizerConfig
from llm_jax.tokenizers.sentencepiece import SentencePieceTokenizer


@pytest.mark.parametrize("name", ["t5_like", "llama_like"])
def test_ids_are_the_librarys_own(name, request, source_files):
    tokenizer = request.getfixturevalue(name)
    library = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.content)
    for text in [*source_files, "a\u2581\u2581b", "  a  b  "]:
        assert tokenizer.encode(text) == library.encode(text)
        assert tokenizer.decode(library.encode(text)) == library.decode(library.encode(text))


def test_space_mark_is_spelt_in_bytes_where_it_would_be_lost(bpe):
    library = sentencepiece.SentencePieceProcessor(model_proto=bpe.content)
    text = "a\u2581 b"
    assert library.decode(library.encode(text)) == "a  b"
    assert bpe.decode(bpe.encode(text)) == text


@pytest.mark.parametrize(("text", "piece"), [("def", "def"), (" def", " "), ("漢字", ""), ("the x", "the")])
def test_a_space_that_the_model_puts_in_front_is_no_byte_of_the_text(llama_like, text, piece):
    library = sentencepiece.SentencePieceProcessor(model_proto=llama_like.content)
    first, *_ = library.encode(text, out_type=str)
    assert first == "\u2581" + piece.replace(" ", "\u2581")
    assert llama_like.first_bytes(llama_like.encode(text)[0]) == len(piece.encode())


def test_llama_like_special_ids(llama_like):
    assert (llama_like.bos_id, llama_like.eos_id, llama_like.pad_id) == (1, 2, 0)


def test_t5_like_special_ids(t5_like):
    assert (t5_like.bos_id, t5_like.eos_id, t5_like.pad_id) == (0, 1, 0)


def test_model_without_eos_is_refused(foreign):
    with pytest.raises(ValueError, match="some.model has no end-of-document token.*--eos_id"):
        SentencePieceTokenizer(foreign(eos_id=-1), "some.model")


def test_digest_follows_the_content_and_not_the_path(bpe, unigram, tmp_path):
    for name, tokenizer in {"a": bpe, "b": bpe, "c": unigram}.items():
        (tmp_path / name).write_bytes(tokenizer.content)
    a, b, c = (SentencePieceTokenizerConfig(str(tmp_path / name)).build(list, tmp_path, "") for name in "abc")
    assert a.digest == b.digest == bpe.digest != c.digest


def test_bad_files_are_refused(tmp_path):
    def build(path):
        return SentencePieceTokenizerConfig(str(path)).build(list, Path(), "")

    with pytest.raises(ValueError, match="missing.model.*cannot be read.*No such file"):
        build(tmp_path / "missing.model")
    (tmp_path / "empty.model").touch()
    with pytest.raises(ValueError, match="is empty"):
        build(tmp_path / "empty.model")
    for content in (b"this is a text, no model\n", b'{"version": "1.0"}', bytes(range(256))):
        (tmp_path / "wrong.model").write_bytes(content)
        with pytest.raises(ValueError, match="wrong.model is not a SentencePiece model: pass the .model file"):
            build(tmp_path / "wrong.model")


def test_truncated_model_is_refused(bpe, tmp_path):
    (tmp_path / "cut.model").write_bytes(bpe.content[: len(bpe.content) // 2])
    with pytest.raises(ValueError, match="cut.model is not a SentencePiece model"):
        SentencePieceTokenizerConfig(str(tmp_path / "cut.model")).build(list, tmp_path, "")

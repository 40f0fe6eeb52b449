"""Models made elsewhere."""

import io
from pathlib import Path

import pytest
import sentencepiece

from llm_jax.tokenizers import SentencePieceTokenizerConfig
from llm_jax.tokenizers.sentencepiece import SentencePieceTokenizer


@pytest.fixture(scope="module")
def foreign(source_files):
    """Trains as SentencePiece does by itself: NFKC, a space in front, spaces collapsed."""

    def train(**options) -> bytes:
        model = io.BytesIO()
        lines = iter("\n".join(source_files).split("\n"))
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=model, model_type="bpe", minloglevel=2, vocab_size=500, **options
        )
        return model.getvalue()

    return train


def test_ids_are_the_librarys_own(foreign, source_files):
    content = foreign()
    library = sentencepiece.SentencePieceProcessor(model_proto=content)
    tokenizer = SentencePieceTokenizer(content)
    for text in [*source_files, "a\u2581b"]:
        assert tokenizer.encode(text) == library.encode(text)
        assert tokenizer.decode(library.encode(text)) == library.decode(library.encode(text))


def test_space_mark_is_spelt_in_bytes_where_it_would_be_lost(bpe):
    library = sentencepiece.SentencePieceProcessor(model_proto=bpe.content)
    text = "a\u2581 b"
    assert library.decode(library.encode(text)) == "a  b"
    assert bpe.decode(bpe.encode(text)) == text


def test_llama_like_ids(foreign):
    tokenizer = SentencePieceTokenizer(foreign(byte_fallback=True))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 0)


def test_t5_like_ids(foreign):
    tokenizer = SentencePieceTokenizer(foreign(pad_id=0, eos_id=1, unk_id=2, bos_id=-1))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 0)


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
        with pytest.raises(ValueError, match="wrong.model is no SentencePiece model: give the .model file"):
            build(tmp_path / "wrong.model")


def test_truncated_model_is_refused(bpe, tmp_path):
    (tmp_path / "cut.model").write_bytes(bpe.content[: len(bpe.content) // 2])
    with pytest.raises(ValueError, match="cut.model is no SentencePiece model"):
        SentencePieceTokenizerConfig(str(tmp_path / "cut.model")).build(list, tmp_path, "")

from pathlib import Path

import pytest

from llm_jax.tokenizers import CharacterTokenizerConfig


def _build(path):
    return CharacterTokenizerConfig(str(path)).build(list, Path(), "")


def test_alphabet_is_the_sorted_characters_of_the_file(tmp_path):
    (tmp_path / "text").write_bytes("bba\r\né".encode())
    tokenizer = _build(tmp_path / "text")
    assert tokenizer.alphabet == "\n\rabé"
    assert tokenizer.encode("baé") == [3, 2, 4]
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (8, 5, 6, 7)


def test_digest_follows_the_alphabet_and_not_the_path(tmp_path):
    for name, text in {"a": "abc", "b": "cab cab", "c": "bca  "}.items():
        (tmp_path / name).write_text(text)
    assert _build(tmp_path / "b").digest == _build(tmp_path / "c").digest != _build(tmp_path / "a").digest


def test_unknown_character_is_named(tmp_path):
    (tmp_path / "text").write_text("abc")
    with pytest.raises(ValueError, match=r"'d' \(U\+0064\) is not in the alphabet of 3"):
        _build(tmp_path / "text").encode("abcd")


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="missing.*cannot be read.*No such file"):
        _build(tmp_path / "missing")
    with pytest.raises(ValueError, match="cannot be read.*directory"):
        _build(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="empty.*is empty"):
        _build(tmp_path / "empty")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="not UTF-8 .byte 0xe9 at offset 3"):
        _build(tmp_path / "latin")


def test_without_a_path_the_alphabet_is_that_of_the_training_text(tmp_path):
    tokenizer = CharacterTokenizerConfig().build(lambda: iter(["cab", "bad"]), tmp_path, "key")
    assert tokenizer.alphabet == "abcd"

import json
import shutil

import pytest

from llm_jax.tokenizers import load_tokenizer
from llm_jax.tokenizers.byte import ByteTokenizer
from llm_jax.tokenizers.folder import transformers_tokenizer

_TEXT = "def f(x):\n    return x\n"


def test_saved_tokenizer_comes_back(any_tokenizer, tmp_path):
    any_tokenizer.save(tmp_path / "deep" / "old")
    shutil.move(tmp_path / "deep" / "old", tmp_path / "new")
    loaded = load_tokenizer(tmp_path / "new")
    assert type(loaded) is type(any_tokenizer)
    for name in ("digest", "vocab_size", "bos_id", "eos_id", "pad_id"):
        assert getattr(loaded, name) == getattr(any_tokenizer, name)
    assert loaded.encode(_TEXT) == any_tokenizer.encode(_TEXT)
    assert loaded.decode(loaded.encode(_TEXT)) == _TEXT


def test_saving_twice_leaves_two_files(any_tokenizer, tmp_path):
    any_tokenizer.save(tmp_path)
    any_tokenizer.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", any_tokenizer.file_name}


def test_other_content_is_refused(bpe, unigram, tmp_path):
    bpe.save(tmp_path)
    (tmp_path / "sentencepiece.model").write_bytes(unigram.content)
    with pytest.raises(ValueError, match=f"has digest {unigram.digest} and was saved with {bpe.digest}"):
        load_tokenizer(tmp_path)


def test_missing_parts_are_named(bpe, tmp_path):
    with pytest.raises(ValueError, match="tokenizer.json.*cannot be read"):
        load_tokenizer(tmp_path)
    bpe.save(tmp_path)
    (tmp_path / "sentencepiece.model").unlink()
    with pytest.raises(ValueError, match="sentencepiece.model.*cannot be read"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "byte"}', "\x00"])
def test_broken_description_is_refused(text, tmp_path):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match="does not describe a saved tokenizer"):
        load_tokenizer(tmp_path)


def test_unknown_kind_is_refused(byte, tmp_path):
    byte.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "kind": "bytes"}))
    with pytest.raises(ValueError, match="kind is 'bytes'.*did you mean 'byte'"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["json.JSONDecoder", "llm_jax.tokenizers.byte.ByteTokenizer", "byte.", 5])
def test_a_type_that_is_no_tokenizer_of_a_users_own_is_refused(kind, byte, tmp_path):
    byte.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "kind": kind}))
    with pytest.raises(ValueError, match="which cannot be imported|it must be one of"):
        load_tokenizer(tmp_path)


def test_a_folder_imports_nothing_that_it_names(byte, tmp_path, monkeypatch):
    (tmp_path / "unheard.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    byte.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "kind": "unheard.Words"}))
    with pytest.raises(ValueError, match="is a unheard.Words, which cannot be imported"):
        load_tokenizer(tmp_path)


class Shouted(ByteTokenizer):
    """Bytes of the text in capitals."""

    kind = "shouted"

    def encode(self, text):
        return super().encode(text.upper())


def test_a_tokenizer_that_derives_from_one_of_the_package_comes_back_as_itself(byte, tmp_path):
    Shouted().save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is Shouted and loaded.encode("a") == [65] and loaded.digest != byte.digest


def test_a_tokenizer_of_a_users_own_has_a_kind_of_its_own():
    with pytest.raises(ValueError, match="Silent does not define `kind`"):
        type("Silent", (ByteTokenizer,), {})()


@pytest.mark.parametrize(
    ("name", "stated", "bos", "eos"),
    [
        ("spiece.model", {}, False, True),
        ("tokenizer.model", {}, True, False),
        ("tokenizer.model", {"add_bos_token": False, "add_eos_token": True}, False, True),
    ],
)
def test_a_sentencepiece_folder_has_the_frame_of_its_class(name, stated, bos, eos, bpe, tmp_path):
    (tmp_path / name).write_bytes(bpe.content)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated))
    tokenizer, frame = transformers_tokenizer(tmp_path)
    assert frame == ((tokenizer.bos_id,) * bos, (tokenizer.eos_id,) * eos)

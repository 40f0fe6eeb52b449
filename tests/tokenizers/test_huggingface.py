import json
import sys
from pathlib import Path

import pytest

from llm_jax.tokenizers import HuggingFaceTokenizerConfig
from llm_jax.tokenizers.huggingface import HuggingFaceTokenizer
from llm_jax.tokenizers.tokenizer import SpecialIds

tokenizers = pytest.importorskip("tokenizers", reason="the extra [hf] is not installed")


def _build(path, **names):
    return HuggingFaceTokenizerConfig(str(path), **names).build(list, Path(), "")


def _save(folder: Path, model, **settings) -> Path:
    folder.mkdir(exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def words():
    """A word-level model with special tokens that are not named in the file."""
    vocabulary = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "red": 4, "green": 5, "blue": 9}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[UNK]"])
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return model


def test_ids_are_the_librarys_own(byte_level_json, source_files):
    tokenizer = _build(byte_level_json / "tokenizer.json")
    library = tokenizers.Tokenizer.from_file(str(byte_level_json / "tokenizer.json"))
    assert tokenizer.encode(source_files[0]) == library.encode(source_files[0]).ids


def test_special_tokens_are_read_from_the_config_beside_it(byte_level_json):
    tokenizer = _build(byte_level_json)
    assert tokenizer.bos_id == tokenizer.eos_id == tokenizer.pad_id == 0


def test_special_tokens_may_be_named(words, tmp_path):
    tokenizer = _build(_save(tmp_path / "t", words), bos="[CLS]", eos="[SEP]", pad="[PAD]")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 0)


def test_sequences_of_encoders_begin_with_cls_and_end_with_sep(words, tmp_path):
    tokenizer = _build(_save(tmp_path, words, cls_token="[CLS]", sep_token="[SEP]"))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    both = _build(_save(tmp_path, words, cls_token="[CLS]", sep_token="[SEP]", bos_token="red", eos_token="blue"))
    assert (both.bos_id, both.eos_id) == (4, 9)


def test_the_frame_is_what_the_post_processor_puts_around_a_text(words, tmp_path):
    framed = _build(_save(tmp_path, words), bos="[CLS]", eos="[SEP]")
    assert framed.frame == ((1,), (2,))
    ids = words.encode("red green").ids
    assert [*framed.frame.before, *framed.encode("red green"), *framed.frame.after] == ids
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A [SEP] red", special_tokens=[("[SEP]", 2), ("red", 4)]
    )
    assert _build(_save(tmp_path, words), eos="[SEP]").frame == ((), (2, 4))


def test_a_special_token_may_take_the_space_before_it(words, tmp_path):
    words.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer = _build(_save(tmp_path, words), eos="[SEP]")
    assert tokenizer.takes_space(tokenizer.token_id("<mask>"))
    assert not tokenizer.takes_space(tokenizer.token_id("[SEP]")) and not tokenizer.takes_space(4)


def test_names_in_the_config_win(words, tmp_path):
    folder = _save(tmp_path / "t", words, bos_token="[CLS]", eos_token="[CLS]")
    assert (_build(folder).eos_id, _build(folder, eos="[SEP]").eos_id) == (1, 2)


def test_digest_follows_content_and_special_ids(words, tmp_path):
    a, b = _save(tmp_path / "a", words), _save(tmp_path / "b", words)
    assert _build(a, eos="[SEP]").digest == _build(b, eos="[SEP]").digest != _build(a, eos="[CLS]").digest


def test_no_special_tokens_are_added_or_cut_or_filled(words, tmp_path):
    words.enable_truncation(2)
    words.enable_padding(length=20)
    tokenizer = _build(_save(tmp_path / "t", words), eos="[SEP]")
    assert tokenizer.encode("red green blue red") == [4, 5, 9, 4]
    assert [ids.tolist() for ids in tokenizer.encode_batch(["red green blue red", "red"])] == [[4, 5, 9, 4], [4]]


def test_vocabulary_covers_ids_after_a_gap(words, tmp_path):
    tokenizer = _build(_save(tmp_path / "t", words), eos="[SEP]")
    assert tokenizer.vocab_size == 10
    assert tokenizer.decode([4, 6, 9]) == "red blue"


def _byte_fallback() -> HuggingFaceTokenizer:
    """Decodes as LLaMA's: a run of bytes that is no UTF-8 is replaced as a whole."""
    vocabulary = {"<unk>": 0, "</s>": 1, "a": 2, "\u2581": 3, **{f"<0x{byte:02X}>": 4 + byte for byte in range(256)}}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    model.add_special_tokens(["<unk>", "</s>"])
    decoders = tokenizers.decoders
    model.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return HuggingFaceTokenizer(model.to_str().encode(), SpecialIds(bos=1, eos=1, pad=0))


@pytest.mark.parametrize("tail", [[2], [0xFF + 4], [1, 0xFF + 4], [1, 1, 2], [3, 3, 2], []])
@pytest.mark.parametrize("head", [[], [2], [3, 2], [1, 3], [3, 3]])
def test_streamed_bytes_wait_for_the_end_of_their_run(head, tail):
    tokenizer = _byte_fallback()
    ids = [*head, *(4 + byte for byte in "é".encode()), *tail]
    decoder = tokenizer.stream()
    assert "".join([*map(decoder.push, ids), decoder.flush()]) == tokenizer.decode(ids)


def test_a_spoilt_run_of_bytes_is_replaced_as_a_whole():
    tokenizer = _byte_fallback()
    run = [4 + byte for byte in "é".encode()]
    assert (tokenizer.decode(run), tokenizer.decode([*run, 4 + 0xFF])) == ("é", "\ufffd" * 3)


def test_bad_files_are_refused(words, tmp_path):
    with pytest.raises(ValueError, match="missing.*cannot be read"):
        _build(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"tokenizer.json.*cannot be read"):
        _build(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"kind": "byte"}')
    with pytest.raises(ValueError, match="is not a tokenizer.json of Hugging Face"):
        _build(tmp_path)
    folder = _save(tmp_path / "t", words)
    for content, message in {
        "{": "tokenizer_config.json is not JSON",
        "[1]": r"tokenizer_config.json holds \[1\]: it must be a JSON object",
        '{"bos_token": 5}': "has bos_token = 5: it must be a token",
        '{"eos_token": {"content": []}}': "has eos_token = .*: it must be a token",
    }.items():
        (folder / "tokenizer_config.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            _build(folder)


def test_missing_or_misspelt_special_tokens_are_refused(words, tmp_path):
    folder = _save(tmp_path / "t", words)
    with pytest.raises(ValueError, match="no end-of-document token.*config's field eos"):
        _build(folder)
    with pytest.raises(ValueError, match=r"eos is '\[SEQ\]', which is not a token.*did you mean '\[SEP\]'"):
        _build(folder, eos="[SEQ]")


def test_without_the_package_the_extra_is_named(byte_level_json, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"pip install 'llm-jax\[hf\]'"):
        _build(byte_level_json)

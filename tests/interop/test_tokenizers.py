"""A written folder carries its tokenizer, and training from it with another one is refused."""

import json
from pathlib import Path

import pytest

from llm_jax.interop import load_hf, save_hf
from llm_jax.models.build import build
from llm_jax.models.families.llama import llama
from llm_jax.starts import HuggingFaceStart
from llm_jax.starts.start import check_tokens
from llm_jax.tokenizers import ByteTokenizerConfig
from llm_jax.tokenizers.character import CharacterTokenizer
from llm_jax.tokenizers.tokenizer import DIGEST_KEY
from tests.helpers import tiny

BYTE = ByteTokenizerConfig().build(list, Path(), "")
SPECIAL = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}


@pytest.fixture(scope="module")
def model():
    model = build(llama(1, 2, 8, hidden=12, vocab_size=260, max_length=16))
    return model, tiny.parameters(model)


@pytest.fixture
def exported(model, tmp_path) -> Path:
    save_hf(*model, tmp_path / "out", tokenizer=BYTE)
    return tmp_path / "out"


def test_config_and_generation_config_name_the_special_tokens(exported):
    for name in ("config.json", "generation_config.json"):
        found = json.loads((exported / name).read_text())
        assert {key: found[key] for key in SPECIAL} == SPECIAL


def test_transformers_loads_model_and_tokenizer(exported):
    transformers = pytest.importorskip("transformers", reason="the extra [parity] is not installed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    text = "漢字 <eos>\u2581\n"
    assert tokenizer.encode(text) == BYTE.encode(text)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported)
    assert theirs.generation_config.eos_token_id == 257 and theirs.config.bos_token_id == 256


def test_a_folder_without_tokenizer_names_no_special_tokens(model, tmp_path):
    save_hf(*model, tmp_path)
    found = json.loads((tmp_path / "config.json").read_text())
    assert {key: found[key] for key in SPECIAL} == dict.fromkeys(SPECIAL)
    assert not (tmp_path / "generation_config.json").exists()
    _check_same_ids(tmp_path, BYTE)


def test_the_tokenizer_of_a_folder_is_copied(model, exported, tmp_path):
    save_hf(*load_hf(exported), tmp_path / "again", tokenizer=exported)
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (exported / "tokenizer.json").read_bytes()
    found = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {key: found[key] for key in SPECIAL} == SPECIAL


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path):
    model = build(llama(1, 2, 8, hidden=12, vocab_size=258, max_length=16))
    with pytest.raises(ValueError, match="the tokenizer has 259 tokens and the model 258"):
        save_hf(model, tiny.parameters(model), tmp_path / "out", tokenizer=BYTE)
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_is_refused_by_its_digest(exported):
    _check_same_ids(exported, BYTE)
    with pytest.raises(ValueError, match=f"was trained with tokenizer {BYTE.digest} and this one is"):
        _check_same_ids(exported, CharacterTokenizer("abc"))


def test_a_tokenizer_written_elsewhere_is_compared_token_by_token(exported):
    config = exported / "tokenizer_config.json"
    facts = json.loads(config.read_text())
    del facts[DIGEST_KEY]
    config.write_text(json.dumps(facts))
    _check_same_ids(exported, BYTE)
    with pytest.raises(ValueError, match="token .* has id .* in this tokenizer"):
        _check_same_ids(exported, CharacterTokenizer("abc"))


@pytest.mark.parametrize("damage", ["{", "[]", '{"model": {}}'])
def test_a_damaged_tokenizer_is_named(exported, damage):
    (exported / "tokenizer_config.json").unlink()
    (exported / "tokenizer.json").write_text(damage)
    with pytest.raises(ValueError, match="tokenizer.json"):
        _check_same_ids(exported, BYTE)


def test_nothing_is_written_into_a_folder_of_something_else(model, tmp_path):
    (tmp_path / "corpus.txt").write_text("text")
    with pytest.raises(ValueError, match="already holds corpus.txt: choose an empty folder"):
        save_hf(*model, tmp_path, tokenizer=BYTE)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]
    with pytest.raises(ValueError, match="is a file: choose an empty folder"):
        save_hf(*model, tmp_path / "corpus.txt")


def _check_same_ids(folder, tokenizer):
    check_tokens(HuggingFaceStart(folder=str(folder)).find(), tokenizer, resized=False)

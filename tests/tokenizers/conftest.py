"""Small tokenizers over a few files of the standard library, made once for all tests here."""

import ast
import inspect
import io
import json
import textwrap
import tokenize
from pathlib import Path

import pytest
import sentencepiece

from llm_jax.tokenizers import ByteTokenizerConfig, HuggingFaceTokenizerConfig, Tokenizer, TrainSentencePieceConfig
from llm_jax.tokenizers.character import CharacterTokenizer
from llm_jax.tokenizers.sentencepiece import SentencePieceTokenizer

_SOURCES = (ast, inspect, json, textwrap, tokenize)


@pytest.fixture(scope="session")
def source_files() -> list[str]:
    """Real Python files, about 200 kB."""
    return [Path(module.__file__).read_bytes().decode() for module in _SOURCES]


@pytest.fixture(scope="session")
def bpe(source_files, tmp_path_factory) -> Tokenizer:
    config = TrainSentencePieceConfig(vocab_size=1000)
    return config.build(lambda: source_files, tmp_path_factory.mktemp("cache"), "sources")


@pytest.fixture(scope="session")
def unigram(source_files, tmp_path_factory) -> Tokenizer:
    config = TrainSentencePieceConfig(vocab_size=1000, kind="unigram")
    return config.build(lambda: source_files, tmp_path_factory.mktemp("cache"), "sources")


@pytest.fixture(scope="session")
def phrases(source_files, tmp_path_factory) -> Tokenizer:
    """Pieces that cross spaces and scripts."""
    config = TrainSentencePieceConfig(vocab_size=1000, split_by_script=False, split_by_space=False)
    return config.build(lambda: source_files, tmp_path_factory.mktemp("cache"), "sources")


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def t5_like(foreign) -> Tokenizer:
    """Collapses spaces, drops those in front, has no bos and no bytes."""
    return SentencePieceTokenizer(foreign(pad_id=0, eos_id=1, unk_id=2, bos_id=-1))


@pytest.fixture(scope="session")
def llama_like(foreign) -> Tokenizer:
    """Keeps spaces, puts one in front, has bytes and no pad."""
    options = {"byte_fallback": True, "remove_extra_whitespaces": False, "normalization_rule_name": "identity"}
    return SentencePieceTokenizer(foreign(allow_whitespace_only_pieces=True, **options))


@pytest.fixture(scope="session")
def byte() -> Tokenizer:
    return ByteTokenizerConfig().build(list, Path(), "")


@pytest.fixture(scope="session")
def character(source_files) -> Tokenizer:
    return CharacterTokenizer("".join(sorted(set("".join(source_files)))))


@pytest.fixture(scope="session")
def byte_level_json(source_files, tmp_path_factory) -> Path:
    """A folder as GPT-2's: byte-level BPE, one special token for all purposes."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra [hf] is not installed")
    model = tokenizers.ByteLevelBPETokenizer()
    model.train_from_iterator(source_files, vocab_size=800, special_tokens=["<|endoftext|>"], show_progress=False)
    folder = tmp_path_factory.mktemp("byte_level")
    model.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>"}, "pad_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


@pytest.fixture(scope="session")
def huggingface(byte_level_json) -> Tokenizer:
    return HuggingFaceTokenizerConfig(str(byte_level_json)).build(list, Path(), "")


@pytest.fixture(params=["byte", "character", "bpe", "unigram", "phrases", "huggingface"])
def any_tokenizer(request) -> Tokenizer:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["byte", "bpe", "unigram", "phrases", "huggingface"])
def lossless(request) -> Tokenizer:
    """Tokenizers that can express every text."""
    return request.getfixturevalue(request.param)

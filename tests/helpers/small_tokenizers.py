"""Small tokenizers of every kind, which can express every text, by name."""

import functools
import io
import tempfile
from pathlib import Path

import pytest
import sentencepiece

from llm_jax.tokenizers import ByteTokenizerConfig, Tokenizer, TrainSentencePieceConfig
from llm_jax.tokenizers.huggingface import HuggingFaceTokenizer
from llm_jax.tokenizers.sentencepiece import SentencePieceTokenizer
from llm_jax.tokenizers.tokenizer import SpecialIds

TEXTS = [
    "Ada Lovelace wrote the first program in London, and the program ran nowhere.",
    "Where was Alan Turing born? Turing was born in London in 1912; he wrote programs.",
    "the fox and the dog run under the old tree near the river in Vienna.",
] * 20

NAMES = ("byte", "bpe", "spaced", "byte level", "word pieces")


@functools.cache
def tokenizer(name: str) -> Tokenizer:
    """bpe: SentencePiece as it is trained here. spaced: SentencePiece with a space in front of a text. byte level: as
    GPT-2's. word pieces: as BERT's cased one."""
    if name == "byte":
        return ByteTokenizerConfig().build(list, Path(), "")
    if name == "bpe":
        with tempfile.TemporaryDirectory() as cache:
            return TrainSentencePieceConfig(vocab_size=330).build(lambda: TEXTS, Path(cache), "texts")
    return {"spaced": _spaced, "byte level": _byte_level, "word pieces": _word_pieces}[name]()


def _spaced() -> Tokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, model_type="bpe", minloglevel=2, vocab_size=340,
        byte_fallback=True, remove_extra_whitespaces=False, normalization_rule_name="identity", hard_vocab_limit=False,
    )  # fmt: skip
    return SentencePieceTokenizer(model.getvalue())


def _byte_level() -> Tokenizer:
    library = pytest.importorskip("tokenizers", reason="the extra [hf] is not installed")
    model = library.ByteLevelBPETokenizer()
    model.train_from_iterator(TEXTS, vocab_size=330, special_tokens=["<s>", "</s>", "[SEP]"], show_progress=False)
    return HuggingFaceTokenizer(model.to_str().encode(), SpecialIds(0, 1, 1))


def _word_pieces() -> Tokenizer:
    library = pytest.importorskip("tokenizers", reason="the extra [hf] is not installed")
    model = library.BertWordPieceTokenizer(lowercase=False)
    model.train_from_iterator(TEXTS, vocab_size=150, show_progress=False)
    ids = {name: model.token_to_id(name) for name in ("[CLS]", "[SEP]", "[PAD]")}
    return HuggingFaceTokenizer(model.to_str().encode(), SpecialIds(*ids.values()))

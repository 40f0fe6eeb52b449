"""Tokenizers: text to ids and back. An experiment has one of the configs. Its run directory stores the tokenizer."""

from llm_jax.tokenizers.byte import ByteTokenizerConfig
from llm_jax.tokenizers.character import CharacterTokenizerConfig
from llm_jax.tokenizers.folder import load_tokenizer
from llm_jax.tokenizers.huggingface import HuggingFaceTokenizerConfig
from llm_jax.tokenizers.sentencepiece import SentencePieceTokenizerConfig
from llm_jax.tokenizers.tokenizer import Tokenizer, TokenizerConfig
from llm_jax.tokenizers.train import TrainSentencePieceConfig

__all__ = [
    "ByteTokenizerConfig",
    "CharacterTokenizerConfig",
    "HuggingFaceTokenizerConfig",
    "SentencePieceTokenizerConfig",
    "Tokenizer",
    "TokenizerConfig",
    "TrainSentencePieceConfig",
    "load_tokenizer",
]

"""Text to ids and back. An experiment names one of the configs; a run directory carries the tokenizer it made."""

from llm_jax.tokenizers.byte import ByteTokenizerConfig
from llm_jax.tokenizers.character import CharacterTokenizerConfig
from llm_jax.tokenizers.folder import check_same_ids, load_tokenizer
from llm_jax.tokenizers.huggingface import HuggingFaceTokenizerConfig
from llm_jax.tokenizers.sentencepiece import SentencePieceTokenizerConfig
from llm_jax.tokenizers.tokenizer import Tokenizer, TokenizerConfig
from llm_jax.tokenizers.train import TrainSentencePieceConfig

# The choice an experiment has, as a union: what the command line can offer.
AnyTokenizerConfig = (
    TrainSentencePieceConfig
    | SentencePieceTokenizerConfig
    | ByteTokenizerConfig
    | CharacterTokenizerConfig
    | HuggingFaceTokenizerConfig
)

__all__ = [
    "AnyTokenizerConfig",
    "ByteTokenizerConfig",
    "CharacterTokenizerConfig",
    "HuggingFaceTokenizerConfig",
    "SentencePieceTokenizerConfig",
    "Tokenizer",
    "TokenizerConfig",
    "TrainSentencePieceConfig",
    "check_same_ids",
    "load_tokenizer",
]

"""Trains lossless SentencePiece models: decoding restores every text exactly, which matters most for code."""

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece

from llm_jax.core import config_text
from llm_jax.core.checks import check, check_fraction, check_one_of, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.core.files import write_atomically
from llm_jax.tokenizers.sentencepiece import SentencePieceTokenizer
from llm_jax.tokenizers.tokenizer import TokenizerConfig, check_unicode

# Pieces of every model: pad, bos, eos, unknown, and the 256 bytes.
_SPECIAL: dict[str, Any] = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
_FIXED_PIECES = len(_SPECIAL) + 256
_DEFAULT_TRAINING_BYTES = {"bpe": 16_000_000, "unigram": 2_000_000}
_CHUNK = 4_000
_LONGEST_CHUNK = 4 * _CHUNK
# SentencePiece reserves this character and skips every sentence that contains it.
_RESERVED = "\u2585"


@configclass
class TrainSentencePieceConfig(TokenizerConfig):
    """A SentencePiece model trained on the experiment's training text.

    Text is not normalised, all white space is kept, and text without a piece is spelt in bytes. Runs of spaces and line
    ends become pieces of their own, so that indentation takes few tokens. The special ids are pad 0, bos 1, eos 2 (and
    3, SentencePiece's unknown piece, which no text yields). The bytes are 4..259.
    """

    vocab_size: int
    """Number of pieces, including special and byte pieces."""
    kind: str = "bpe"
    """Either "bpe" (Sennrich et al., 2016) or "unigram" (Kudo, 2018)."""
    split_by_script: bool = True
    """True: pieces never mix letters, digits and punctuation. False: code needs fewer tokens (`.append(`)."""
    split_by_space: bool = True
    """True: pieces have spaces only at their beginning. False: pieces may span words, and training is slower."""
    max_piece_length: int = 16
    """Maximum length of a piece in characters."""
    character_coverage: float = 0.9995
    """Fraction of the text whose characters become pieces. Rarer characters are spelt in bytes."""
    max_training_bytes: int | None = None
    """Longer text is sampled evenly down to this size. None: 16 MB for bpe and 2 MB for unigram, which is slower."""

    def __post_init__(self):
        check_one_of("kind", self.kind, _DEFAULT_TRAINING_BYTES)
        check(
            self.vocab_size > _FIXED_PIECES,
            f"vocab_size is {self.vocab_size}: it must exceed the {_FIXED_PIECES} special and byte pieces",
        )
        check_positive(max_piece_length=self.max_piece_length, max_training_bytes=self.training_bytes)
        check_fraction(character_coverage=self.character_coverage)

    @property
    def training_bytes(self) -> int:
        """Maximum size of the training text in bytes."""
        return _DEFAULT_TRAINING_BYTES[self.kind] if self.max_training_bytes is None else self.max_training_bytes

    def build(self, documents: Callable[[], Iterable[str]], cache: Path, key: str) -> SentencePieceTokenizer:
        """See `TokenizerConfig`. Trains a model, or reads it from `cache` if it was trained with the same config and
        key.

        Raises:
          ValueError: if there is no text, if it is too short or too varied for `vocab_size`, or if `cache` cannot be
            written.
        """
        name = hashlib.sha256(f"{config_text.digest(self)} {key}".encode()).hexdigest()[:16]
        path = Path(cache) / "tokenizers" / f"{name}.model"
        if path.exists():
            return SentencePieceTokenizer(path.read_bytes(), f"{path} (delete it to train again)")
        model = train(self, documents())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, model)
        except OSError as error:
            raise ValueError(f"{path} cannot be written ({error.strerror}): choose another cache folder") from error
        return SentencePieceTokenizer(model, str(path))


def train(settings: TrainSentencePieceConfig, documents: Iterable[str]) -> bytes:
    """Serialised model trained on `documents`. Deterministic: the same text and settings give the same bytes.

    Raises:
      ValueError: if there is no text, or if it is too short or too varied for the vocabulary.
    """
    sample = sample_chunks(documents, settings.training_bytes)
    check(bool(sample), "there is no text to train a tokenizer on: every document of the training source is empty")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=model,
            model_type=settings.kind,
            vocab_size=settings.vocab_size,
            split_by_unicode_script=settings.split_by_script,
            split_by_whitespace=settings.split_by_space,
            max_sentencepiece_length=settings.max_piece_length,
            character_coverage=settings.character_coverage,
            # The default of a million candidates is meant for large vocabularies. Here it would take minutes and not
            # improve compression.
            seed_sentencepiece_size=5 * settings.vocab_size,
            normalization_rule_name="identity",
            byte_fallback=True,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=4 * _LONGEST_CHUNK,
            num_threads=2,
            minloglevel=2,
            **_SPECIAL,
        )
    except RuntimeError as error:
        raise ValueError(_explain(settings, str(error))) from error
    return model.getvalue()


def sample_chunks(documents: Iterable[str], limit: int) -> list[str]:
    """Every 2**k-th chunk of the documents, with the smallest k for which they have at most `limit` bytes."""
    kept: list[str] = []
    size = index = 0
    stride = 1
    for document in documents:
        for chunk in _chunks(document):
            if index % stride == 0:
                kept.append(chunk)
                size += len(chunk.encode())
            index += 1
            if size > limit and len(kept) > 1:
                kept = kept[::2]
                stride *= 2
                size = sum(len(chunk.encode()) for chunk in kept)
    return kept


def _chunks(document: str) -> Iterator[str]:
    """Parts of a document, split before line ends, because SentencePiece drops long sentences and final line ends."""
    check_unicode(document)
    document = document.replace(_RESERVED, " ")
    start = 0
    while start < len(document):
        end = document.find("\n", start + _CHUNK, start + _LONGEST_CHUNK)
        end = end if end >= 0 else start + _LONGEST_CHUNK
        if chunk := document[start:end].rstrip("\r\n"):
            yield chunk
        start = end


def _explain(settings: TrainSentencePieceConfig, error: str) -> str:
    if most := re.search(r"Vocabulary size too high .* <= (\d+)", error):
        return (
            f"vocab_size is {settings.vocab_size} but the training text yields only {most[1]} pieces: "
            f"set vocab_size to at most {most[1]}, or train on more text"
        )
    if least := re.search(r"smaller than required_chars. \d+ vs (\d+)", error):
        return (
            f"vocab_size is {settings.vocab_size} but the text's characters alone need {least[1]} pieces: "
            f"set vocab_size to {least[1]} or more, or lower character_coverage ({settings.character_coverage})"
        )
    return f"SentencePiece could not learn a {settings.kind} model of {settings.vocab_size} pieces: {error}"

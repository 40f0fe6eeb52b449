"""SentencePiece models (Kudo & Richardson, 2018): any `.model` file, including those that `train.py` trains."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import sentencepiece

from llm_jax.core.checks import check
from llm_jax.core.configclass import configclass
from llm_jax.tokenizers import pipelines
from llm_jax.tokenizers.cuts import uncrossed
from llm_jax.tokenizers.pipelines import SPACE_MARK, ModelProto
from llm_jax.tokenizers.tokenizer import SpecialIds, Tokenizer, TokenizerConfig, check_unicode
from llm_jax.tokenizers.tokenizer_files import read_file

# Short parts are faster, because SentencePiece's queue of merges grows with the text.
_CHARACTERS_PER_PART = 2**13


@configclass
class SentencePieceTokenizerConfig(TokenizerConfig):
    """A trained SentencePiece model."""

    model: str
    """Path of a `.model` file."""

    def build(self, documents: Callable[[], Iterable[str]], cache: Path, key: str) -> "SentencePieceTokenizer":
        """See `TokenizerConfig`. Reads the file at `model`."""
        return SentencePieceTokenizer(read_file(self.model, "SentencePiece model"), self.model)


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model.

    The special ids are those of the model. For models without bos or pad see `SpecialIds.choose`.

    SentencePiece writes a space as U+2581 within pieces, and so reads U+2581 in a text as a space. Here, models that
    keep every space and have byte fallback (all models of `train.py`) spell U+2581 in bytes, so that decoding restores
    every text exactly. Other models may change text: for example, T5's collapses spaces.
    """

    kind = "sentencepiece"
    file_name = "sentencepiece.model"

    def __init__(self, content: bytes, source: str = "SentencePiece model"):
        """`content` is a serialised ModelProto. `source` names it in errors."""
        self._model = _load(content, source)
        model = self._model
        own = [i if i >= 0 else None for i in (model.bos_id(), model.eos_id(), model.pad_id(), model.unk_id())]
        super().__init__(model.vocab_size(), SpecialIds.choose(*own, source=source), content)
        self._space_mark_ids = self._find_space_mark_ids()
        self._pairs = _joined_pairs(content) if self._space_mark_ids else None

    @classmethod
    def from_content(cls, content: bytes, special: SpecialIds, source: str) -> Self:
        return cls(content, source)

    def encode(self, text: str) -> list[int]:
        check_unicode(text)
        if self._space_mark_ids and SPACE_MARK in text:
            return self._encode_with_space_marks(text)
        return self._model.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Same as `encode`, on all cores."""
        texts = list(texts)
        for text in texts:
            check_unicode(text)
        batch = self._model.encode(texts)
        if self._space_mark_ids:
            for index, text in enumerate(texts):
                if SPACE_MARK in text:
                    batch[index] = self._encode_with_space_marks(text)
        return [np.asarray(ids, np.int32) for ids in batch]

    def parts(self, text: str) -> Iterator[str]:
        """See `Tokenizer.parts`. Only texts for BPE models that keep every space and have byte fallback are split.

        Other models may change the beginning of a text by normalisation. A unigram model (Kudo, 2018) chooses the best
        path by a float32 sum over the whole text, whose rounding depends on all preceding text.
        """
        if self._pairs is None:
            return super().parts(text)
        return uncrossed(text, _CHARACTERS_PER_PART, self._pairs)

    def token_id(self, name: str) -> int | None:
        # An unknown piece has the id of <unk>, which is no control piece.
        token_id = self._model.piece_to_id(name)
        return token_id if self._model.is_control(token_id) else None

    def first_bytes(self, token_id: int) -> int:
        return 1 if self._model.is_byte(int(token_id)) else super().first_bytes(token_id)

    def pipeline(self) -> dict[str, Any]:
        return pipelines.of_sentencepiece(self.content, bool(self._space_mark_ids))

    def _decode(self, ids: list[int]) -> str:
        return self._model.decode(ids)

    def _encode_with_space_marks(self, text: str) -> list[int]:
        first, *rest = self._model.encode(text.split(SPACE_MARK))
        return first + [token_id for part in rest for token_id in (*self._space_mark_ids, *part)]

    def _find_space_mark_ids(self) -> list[int]:
        """Ids of the bytes of U+2581; empty if the model has no byte fallback or does not keep every space."""
        ids = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]
        probe = "  a  "
        keeps_spaces = "".join(self._model.encode(probe, out_type=str)) == probe.replace(" ", SPACE_MARK)
        return ids if keeps_spaces and all(map(self._model.is_byte, ids)) else []


def _load(content: bytes, source: str) -> sentencepiece.SentencePieceProcessor:
    model = sentencepiece.SentencePieceProcessor()
    try:
        model.load_from_serialized_proto(content)
    except RuntimeError as error:
        raise ValueError(
            f"{source} is not a SentencePiece model: pass the .model file that SentencePiece wrote (for a "
            "tokenizer.json use HuggingFaceTokenizerConfig)"
        ) from error
    check(model.vocab_size() > 0, f"{source} is a SentencePiece model without pieces: pass a trained model")
    return model


def _joined_pairs(content: bytes) -> set[str] | None:
    """All pairs of adjacent characters within pieces; None unless the model is BPE with byte fallback and without
    normalisation."""
    model = ModelProto.FromString(content)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    takes_text_as_it_is = (
        not normalizer.precompiled_charsmap
        and not normalizer.add_dummy_prefix
        and not normalizer.remove_extra_whitespaces
        and trainer.byte_fallback
    )
    if trainer.model_type != trainer.BPE or not takes_text_as_it_is:
        return None
    pieces = [entry.piece.replace(SPACE_MARK, " ") for entry in model.pieces]
    return {piece[i : i + 2] for piece in pieces for i in range(len(piece) - 1)}

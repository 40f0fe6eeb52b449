"""UTF-8 bytes as tokens: no training, no unknown text, a vocabulary of 259."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from llm_jax.core.configclass import configclass
from llm_jax.tokenizers import pipelines
from llm_jax.tokenizers.cuts import pieces_of
from llm_jax.tokenizers.tokenizer import SpecialIds, Tokenizer, TokenizerConfig, check_unicode

_BYTES = 256
_CHARACTERS_PER_PART = 2**18


@configclass
class ByteTokenizerConfig(TokenizerConfig):
    """UTF-8 bytes as tokens, as in ByT5 (Xue et al., 2022)."""

    def build(self, documents: Callable[[], Iterable[str]], cache: Path, key: str) -> "ByteTokenizer":
        """See `TokenizerConfig`. Trains and reads nothing."""
        return ByteTokenizer()


class ByteTokenizer(Tokenizer):
    """Ids 0..255 are the bytes. bos is 256, eos 257, pad 258."""

    kind = "byte"
    file_name = "byte.txt"

    def __init__(self):
        super().__init__(_BYTES + 3, SpecialIds(bos=_BYTES, eos=_BYTES + 1, pad=_BYTES + 2), b"UTF-8 bytes\n")

    @classmethod
    def from_content(cls, content: bytes, special: SpecialIds, source: str) -> Self:
        return cls()

    def encode(self, text: str) -> list[int]:
        check_unicode(text)
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        for text in texts:
            check_unicode(text)
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

    def parts(self, text: str) -> Iterator[str]:
        return pieces_of(text, _CHARACTERS_PER_PART)

    def first_bytes(self, token_id: int) -> int:
        return int(token_id < _BYTES)

    def pipeline(self) -> dict[str, Any]:
        return pipelines.of_bytes(self.special.names)

    def _decode(self, ids: list[int]) -> str:
        return bytes(token_id for token_id in ids if token_id < _BYTES).decode(errors="replace")

"""Tokenises documents on all cores, in their order and in constant memory.

    documents -> pieces (`Encoding.pieces`) -> batches of pieces -> threads -> ids, in order

Threads suffice: SentencePiece and Hugging Face tokenizers release the GIL. Processes would only add startup time,
copies of every text and more ways to fail. Reading and other work under the GIL takes a tenth of the time that
SentencePiece takes for the same text, so one process keeps about ten cores busy.
"""

import abc
import dataclasses
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from llm_jax.data.sources import Document
from llm_jax.tokenizers.tokenizer import Tokenizer

_CHARACTERS_PER_BATCH = 2**18
_BATCHES_PER_THREAD = 3


@dataclasses.dataclass(frozen=True)
class Piece:
    """A document, or a part of a document that can be encoded independently."""

    document: str
    """The document's name."""
    text: str
    first: bool
    last: bool


@dataclasses.dataclass(frozen=True)
class EncodedPieces:
    """Token ids of P consecutive pieces, N tokens in total."""

    tokens: np.ndarray
    """Unsigned little-endian integers [N], with boundary tokens."""
    ends: np.ndarray
    """int64 [P], the end of each piece in `tokens`."""
    last: np.ndarray
    """bool [P], whether a piece is the last of its document."""
    text_bytes: np.ndarray
    """int64 [P], UTF-8 bytes of each piece's text."""


def token_type(vocab_size: int) -> np.dtype:
    """The dtype in which ids are stored, with the same byte order on every machine."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class Encoding(abc.ABC):
    """How documents become integers in the token cache."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    @property
    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """JSON that, with text and tokenizer, determines the integers."""

    @property
    @abc.abstractmethod
    def bound(self) -> int:
        """All integers are below it."""

    @abc.abstractmethod
    def pieces(self, documents: Iterable[Document]) -> Iterator[Piece]:
        """All pieces of all documents. They depend on the text and the tokenizer alone."""

    @abc.abstractmethod
    def encode(self, batch: list[Piece]) -> EncodedPieces:
        """The integers of the pieces. It must be thread-safe.

        Raises:
          ValueError: for integers that are not below `bound`, and what the tokenizer refuses.
        """


class TextEncoding(Encoding):
    """A document is [bos] + ids + [eos]."""

    def __init__(self, tokenizer: Tokenizer, bos: bool, eos: bool):
        super().__init__(tokenizer)
        self._bos, self._eos = bos, eos

    @property
    def identity(self) -> dict[str, Any]:
        return {"bos": self._bos, "eos": self._eos}

    @property
    def bound(self) -> int:
        return self.tokenizer.vocab_size

    def pieces(self, documents: Iterable[Document]) -> Iterator[Piece]:
        for document in documents:
            parts = iter(self.tokenizer.parts(document.text))
            first, part = True, next(parts)
            for following in parts:
                yield Piece(document.name, part, first, last=False)
                first, part = False, following
            yield Piece(document.name, part, first, last=True)

    def encode(self, batch: list[Piece]) -> EncodedPieces:
        tokenizer, arrays = self.tokenizer, []
        for piece, ids in zip(batch, tokenizer.encode_batch([piece.text for piece in batch]), strict=True):
            before = [tokenizer.bos_id] if self._bos and piece.first else []
            after = [tokenizer.eos_id] if self._eos and piece.last else []
            ids = np.concatenate([np.array(before, np.int64), ids, np.array(after, np.int64)])
            _check_ids(piece.document, ids, tokenizer)
            arrays.append(ids)
        return joined(batch, arrays, self.bound)


def joined(batch: list[Piece], arrays: list[np.ndarray], bound: int) -> EncodedPieces:
    """The integers of pieces, from those of each piece."""
    return EncodedPieces(
        np.concatenate(arrays).astype(token_type(bound)),
        np.cumsum([len(ids) for ids in arrays], dtype=np.int64),
        np.array([piece.last for piece in batch]),
        np.array([len(piece.text.encode()) for piece in batch], np.int64),
    )


def encoded(source: Iterable[Piece], encoding: Encoding) -> Iterator[EncodedPieces]:
    """Yields the integers of the pieces in batches, in order. Errors of the source and the encoding pass through."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting: deque[Future[EncodedPieces]] = deque()
    pool = ThreadPoolExecutor(threads, "tokenize")
    try:
        for batch in _batches(source):
            waiting.append(pool.submit(encoding.encode, batch))
            if len(waiting) >= _BATCHES_PER_THREAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(source: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch, characters = [], 0
    for piece in source:
        batch.append(piece)
        characters += len(piece.text) + 1
        if characters >= _CHARACTERS_PER_BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _check_ids(name: str, ids: np.ndarray, tokenizer: Tokenizer) -> None:
    if len(ids) and (ids.min() < 0 or ids.max() >= tokenizer.vocab_size):
        raise ValueError(
            f"document {name}: the tokenizer returned ids from {ids.min()} to {ids.max()}, but its vocab_size is "
            f"{tokenizer.vocab_size}: restore its file, or set bos and eos to False if it has no such token"
        )

"""Tokenises text on all cores, in the order of the documents and in constant memory.

    documents -> pieces (`Tokenizer.parts`) -> batches of pieces -> threads -> ids, in order

Threads suffice: SentencePiece and Hugging Face tokenizers release the GIL. Processes would only add startup time,
copies of every text and more ways to fail. Reading and other work under the GIL takes a tenth of the time that
SentencePiece takes for the same text, so one process keeps about ten cores busy.
"""

import dataclasses
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

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


def pieces(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[Piece]:
    """All pieces of all documents. They depend on the text and the tokenizer alone."""
    for document in documents:
        parts = iter(tokenizer.parts(document.text))
        first, part = True, next(parts)
        for following in parts:
            yield Piece(document.name, part, first, last=False)
            first, part = False, following
        yield Piece(document.name, part, first, last=True)


def encoded(source: Iterable[Piece], tokenizer: Tokenizer, bos: bool, eos: bool) -> Iterator[EncodedPieces]:
    """Yields the ids of the pieces in batches, in order.

    Raises:
      ValueError: for ids outside the vocabulary. Errors of the source and the tokenizer pass through.
    """
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting: deque[Future[EncodedPieces]] = deque()
    pool = ThreadPoolExecutor(threads, "tokenize")
    try:
        for batch in _batches(source):
            waiting.append(pool.submit(_encode, batch, tokenizer, bos, eos))
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


def _encode(batch: list[Piece], tokenizer: Tokenizer, bos: bool, eos: bool) -> EncodedPieces:
    dtype = token_type(tokenizer.vocab_size)
    arrays: list[np.ndarray] = []
    ends, end = [], 0
    for piece, ids in zip(batch, tokenizer.encode_batch([piece.text for piece in batch]), strict=True):
        before = [tokenizer.bos_id] if bos and piece.first else []
        after = [tokenizer.eos_id] if eos and piece.last else []
        ids = np.concatenate([np.array(before, np.int64), ids, np.array(after, np.int64)])
        _check_ids(piece.document, ids, tokenizer)
        arrays.append(ids.astype(dtype))
        end += len(ids)
        ends.append(end)
    return EncodedPieces(
        np.concatenate(arrays),
        np.array(ends, np.int64),
        np.array([piece.last for piece in batch]),
        np.array([len(piece.text.encode()) for piece in batch], np.int64),
    )


def _check_ids(name: str, ids: np.ndarray, tokenizer: Tokenizer) -> None:
    if len(ids) and (ids.min() < 0 or ids.max() >= tokenizer.vocab_size):
        raise ValueError(
            f"document {name}: the tokenizer returned ids from {ids.min()} to {ids.max()}, but its vocab_size is "
            f"{tokenizer.vocab_size}: restore its file, or set bos and eos to False if it has no such token"
        )

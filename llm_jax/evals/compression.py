"""Bits per byte of classical compressors: baselines for a language model's held-out loss.

A language model is a compressor. It is compared with `gzip -9`, `xz -9` and a smoothed byte 5-gram trained on the
same text as the model. Each document is coded independently, and each code is self-delimiting: gzip and xz mark their
ends, and the n-gram codes an end-of-document symbol (so it predicts 257 symbols). The result is the sum of the code
lengths of all documents in bits, divided by their bytes.
"""

import dataclasses
import gzip
import lzma
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Self

import numpy as np

from llm_jax.core.checks import check

_END = 256
_START = 257
_PREDICTED = 257
_SYMBOL_BITS = 9
_MAX_ORDER = 64 // _SYMBOL_BITS
_CHUNK_BYTES = 2**22
_PRESET_6_DICTIONARY = 2**23

BASELINES = ("gzip-9", "xz-9", "byte-5-gram")
"""Names of the coders that `baselines` scores."""


def baselines(train_docs: Iterable[bytes], test_docs: Iterable[bytes]) -> dict[str, float]:
    """Bits per byte over `test_docs` of gzip-9, xz-9 and a byte-5-gram trained on `train_docs`, by those names.

    Raises:
      ValueError: if there is no training document, or the test documents hold no byte.
    """
    test_docs = list(test_docs)
    coders = (gzip_bits, xz_bits, ByteNGram.train(train_docs, order=5).bits)
    return {name: bits_per_byte(coder, test_docs) for name, coder in zip(BASELINES, coders, strict=True)}


def bits_per_byte(bits: Callable[[bytes], float], documents: Sequence[bytes]) -> float:
    """Sum of `bits(document)` over the documents, divided by their bytes.

    Raises:
      ValueError: if the documents hold no byte.
    """
    size = sum(map(len, documents))
    check(
        size > 0,
        f"{len(documents)} test documents hold 0 bytes: bits per byte needs at least one byte of text",
    )
    return sum(map(bits, documents)) / size


def gzip_bits(document: bytes) -> float:
    """Bits of the document in gzip's format: zlib level 9, and 18 bytes of header and trailer.

    The command `gzip -9 FILE` also stores the file's name. Apart from that the sizes agree, for most files exactly.
    """
    return 8.0 * len(gzip.compress(document, compresslevel=9, mtime=0))


def xz_bits(document: bytes) -> float:
    """Bits of `xz -9 < document`: LZMA2 preset 9 in the .xz container."""
    # Presets 6 and 9 differ only in the size of the dictionary. A dictionary larger than the document changes nothing,
    # and clearing 64 MiB for each small file takes ten times as long as the compression.
    return 8.0 * len(lzma.compress(document, preset=6 if len(document) <= _PRESET_6_DICTIONARY else 9))


@dataclasses.dataclass(frozen=True)
class _Level:
    """All n-grams of one length. An n-gram is a uint64 with its first symbol in the highest bits."""

    grams: np.ndarray
    """uint64 [G], sorted: the n-grams seen in training."""
    probabilities: np.ndarray
    """float64 [G]: interpolated probability of each n-gram's last symbol given the others."""
    contexts: np.ndarray
    """uint64 [C], sorted: the distinct contexts of `grams`."""
    leftovers: np.ndarray
    """float64 [C]: the interpolation weight of the shorter context, which is the sum of discounts / total count."""


@dataclasses.dataclass(frozen=True)
class ByteNGram:
    """Interpolated modified Kneser-Ney model of bytes (Chen & Goodman 1998), built by `train`.

    Documents are independent: each begins with start symbols as context and ends with a predicted end symbol. All
    probabilities are positive. They sum to one over the 257 symbols after any context.
    """

    levels: tuple[_Level, ...]
    """One per length 1 ... order."""

    @classmethod
    def train(cls, documents: Iterable[bytes], order: int = 5) -> Self:
        """Counts n-grams of `order` symbols (order - 1 bytes of context) and smooths them.

        Discounts are computed from the counts of counts of each length. If that is impossible (little or artificial
        text), they are 0.5, 1 and 1.5. Memory is proportional to the distinct n-grams and one document, not to the
        whole text.

        Raises:
          ValueError: if order is not between 1 and 7, or there is no document.
        """
        check(
            1 <= order <= _MAX_ORDER,
            f"order is {order}: it must lie between 1 and {_MAX_ORDER}",
        )
        grams, counts = _count(documents, order)
        check(
            len(grams) > 0,
            "there are 0 training documents: an n-gram model needs at least one",
        )
        tallies = [(grams, counts)]
        for length in range(order - 1, 0, -1):
            # Kneser-Ney: below the full order an n-gram counts the distinct symbols before it, not its occurrences.
            tallies.append(_tally(np.sort(_suffixes(tallies[-1][0], length))))
        levels: tuple[_Level, ...] = ()
        for grams, counts in reversed(tallies):
            levels += (_smooth(grams, counts, levels),)
        return cls(levels)

    @property
    def order(self) -> int:
        return len(self.levels)

    def surprisals(self, document: bytes) -> np.ndarray:
        """Surprisal in bits of each byte of the document and of its end, float64 [len(document) + 1]."""
        return -np.log2(_probabilities(self.levels, _grams(document, self.order)))

    def bits(self, document: bytes) -> float:
        """Code length of the document and its end, in bits."""
        return float(self.surprisals(document).sum())


def _grams(document: bytes, order: int) -> np.ndarray:
    """The n-gram that ends in each byte of the document and in its end, uint64 [len(document) + 1]."""
    size = len(document) + 1
    symbols = np.full(size + order - 1, _START, np.uint64)
    symbols[order - 1 : -1] = np.frombuffer(document, np.uint8)
    symbols[-1] = _END
    grams = symbols[:size].copy()
    for index in range(1, order):
        grams <<= np.uint64(_SYMBOL_BITS)
        grams |= symbols[index : index + size]
    return grams


def _suffixes(grams: np.ndarray, length: int) -> np.ndarray:
    """The last `length` symbols of each n-gram."""
    return grams & np.uint64(2 ** (_SYMBOL_BITS * length) - 1)


def _count(documents: Iterable[bytes], order: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct n-grams of all documents, sorted, and how often each occurs."""
    tally = np.empty(0, np.uint64), np.empty(0, np.int64)
    for chunk in _chunks(documents):
        grams = np.concatenate([_grams(document, order) for document in chunk])
        tally = _merge(tally, _tally(np.sort(grams)))
    return tally


def _chunks(documents: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Consecutive documents in lists of about _CHUNK_BYTES."""
    chunk: list[bytes] = []
    size = 0
    for document in documents:
        chunk.append(document)
        size += len(document) + 1
        if size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _tally(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values of a sorted array, and their counts."""
    starts = _starts(ordered)
    return ordered[starts], np.diff(starts, append=len(ordered))


def _merge(left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The counts of two texts together, from the counts of each."""
    grams, counts = (np.concatenate(pair) for pair in zip(left, right, strict=True))
    # The stable sort merges two sorted halves in linear time.
    by_gram = np.argsort(grams, kind="stable")
    grams, counts = grams[by_gram], counts[by_gram]
    starts = _starts(grams)
    return grams[starts], np.add.reduceat(counts, starts)


def _starts(ordered: np.ndarray) -> np.ndarray:
    """The start index of each run of equal values in a sorted array."""
    return np.flatnonzero(np.concatenate([np.ones(1, bool), ordered[1:] != ordered[:-1]]))


def _smooth(grams: np.ndarray, counts: np.ndarray, lower: tuple[_Level, ...]) -> _Level:
    """p(w | context) = (c - D(c)) / total + leftover * p(w | shorter context)   (Chen & Goodman 1998, eq. 27)."""
    discounts = _discounts(counts)[np.minimum(counts, 3)]
    contexts = grams >> np.uint64(_SYMBOL_BITS)
    starts = _starts(contexts)
    sizes = np.diff(starts, append=len(grams))
    totals = np.add.reduceat(counts, starts)
    leftovers = np.add.reduceat(discounts, starts) / totals
    shorter = _probabilities(lower, _suffixes(grams, len(lower)))
    own = (counts - discounts) / np.repeat(totals, sizes)
    return _Level(grams, own + np.repeat(leftovers, sizes) * shorter, contexts[starts], leftovers)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Discounts of counts of 0, 1, 2, and 3 or more, float64 [4] (Chen & Goodman 1998, eq. 26)."""
    n1, n2, n3, n4 = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(np.float64)
    if min(n1, n2, n3, n4) > 0:
        y = n1 / (n1 + 2 * n2)
        discounts = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
        if np.all(discounts[1:] > 0):
            return discounts
    return np.array([0, 0.5, 1, 1.5])


def _probabilities(levels: tuple[_Level, ...], grams: np.ndarray) -> np.ndarray:
    """Probability of each n-gram's last symbol given the others, where n = len(levels)."""
    if not levels:
        return np.full(len(grams), 1 / _PREDICTED)
    lower, level = levels[:-1], levels[-1]
    where, seen = _find(level.grams, grams)
    result = level.probabilities[where]
    missed = grams[~seen]
    if len(missed):
        where, known = _find(level.contexts, missed >> np.uint64(_SYMBOL_BITS))
        leftovers = np.where(known, level.leftovers[where], 1.0)
        result[~seen] = leftovers * _probabilities(lower, _suffixes(missed, len(lower)))
    return result


def _find(ordered: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of each value in a sorted array, and whether the array contains it."""
    where = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return where, ordered[where] == values

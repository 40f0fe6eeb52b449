"""Duplicate documents: removing them, and counting them within and between the parts of the data."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from llm_jax.core.files import write_atomically
from llm_jax.data.cache import TokenDocuments
from llm_jax.data.sources import Document, TextSource
from llm_jax.data.splits import DerivedSource

_DIGEST = np.dtype([("high", "<u8"), ("low", "<u8")])


class Distinct(DerivedSource):
    """The documents of `base` whose text occurs neither earlier in `base` nor in any document of `others`.

    Iteration keeps a set of sixteen-byte hashes of the distinct texts: about 100 bytes of memory for each document.
    """

    def __init__(self, base: TextSource, others: Sequence[TextSource] = ()):
        super().__init__([base, *others], "distinct texts")

    def __iter__(self) -> Iterator[Document]:
        base, *others = self._bases
        seen = {document.digest for other in others for document in other}
        for document in base:
            digest = document.digest
            if digest not in seen:
                seen.add(digest)
                yield document

    @property
    def invalid(self) -> tuple[str, ...]:
        return self._bases[0].invalid

    @property
    def empty(self) -> int:
        return self._bases[0].empty

    @property
    def left_out(self) -> int:
        """Number of documents of `base` that are left out. Reads `base` twice."""
        return sum(1 for _ in self._bases[0]) - sum(1 for _ in self)

    def __str__(self) -> str:
        return f"distinct texts of {self._bases[0]}"


@dataclasses.dataclass(frozen=True)
class DocumentSet:
    """The documents of one part of one source."""

    tokens: Callable[[], TokenDocuments]
    bos: bool
    eos: bool


def fingerprints(documents: DocumentSet) -> np.ndarray:
    """Sixteen-byte hash of the ids of every document, without boundary tokens: [documents] of _DIGEST.

    With one tokenizer, documents with the same text have the same fingerprint. Texts with the same ids also have the
    same fingerprint; a model cannot distinguish them.
    """
    tokens, found = documents.tokens(), bytearray()
    for index in range(len(tokens)):
        ids = tokens[index]
        found += hashlib.blake2b(
            ids[documents.bos : len(ids) - documents.eos].astype("<u4").tobytes(), digest_size=16
        ).digest()
    return np.frombuffer(bytes(found), _DIGEST)


def census(sets: Mapping[str, np.ndarray]) -> dict[str, dict[str, int]]:
    """Counts the documents of each set, and the duplicates within and between sets.

    Args:
      sets: fingerprints by name, which is `<part>` or `<part>/<source>`.

    Returns:
      For each set: `documents`; `duplicates`, the documents whose text occurs earlier in the set; and `in_<part>`, the
      documents whose text occurs in an earlier set of that part. Takes about 50 bytes of memory for each document.
    """
    total = sum(map(len, sets.values()))
    found, earlier = {}, {}
    for name, numbers in zip(sets, _numbered(list(sets.values())), strict=True):
        held = np.zeros(total, bool)
        held[numbers] = True
        found[name] = {"documents": len(numbers), "duplicates": len(numbers) - int(held.sum())}
        found[name] |= {f"in_{part}": int(texts[numbers].sum()) for part, texts in earlier.items()}
        part = name.partition("/")[0]
        earlier[part] = earlier.get(part, False) | held
    return found


def remembered(cache: Path, identity: Sequence[str], count: Callable[[], dict]) -> dict:
    """The result of `count()`, stored in `cache`. It must be JSON and depend on `identity` alone."""
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    file = cache / "census" / f"{key}.json"
    # The counts can be computed again, so errors of reading or writing the file are ignored.
    with contextlib.suppress(OSError, ValueError):
        return json.loads(file.read_text(encoding="utf-8"))
    found = count()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(found, indent=2) + "\n")
    return found


def _numbered(sets: list[np.ndarray]) -> list[np.ndarray]:
    """int64 ids of the fingerprints, below their total count: equal fingerprints have equal ids in all sets."""
    if not sets:
        return []
    everything = np.concatenate(sets)
    # Equal fingerprints are neighbours once sorted; the number of changes before one is its id.
    order = np.lexsort((everything["low"], everything["high"]))
    differs = np.zeros(len(everything), bool)
    for half in ("high", "low"):
        ordered = everything[half][order]
        differs[1:] |= ordered[1:] != ordered[:-1]
    numbers = np.empty(len(everything), np.int64)
    numbers[order] = np.cumsum(differs)
    return np.split(numbers, np.cumsum([len(found) for found in sets])[:-1])

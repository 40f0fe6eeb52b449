"""Splits: which documents, or which range of the text, are for training, for validation and for the final test."""

import abc
import hashlib
import heapq
from collections.abc import Iterator, Sequence
from typing import Literal

from llm_jax.core.checks import check, check_fraction
from llm_jax.core.configclass import configclass
from llm_jax.data.sources import Document, Reader, TextSource

Part = Literal["train", "validation", "test"]


@configclass
class Split(abc.ABC):
    """Which text is for training, for validation and for the test. Derive a configclass from it to use your own
    split."""

    @abc.abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """The existing parts, 'train' first."""

    @abc.abstractmethod
    def part(self, source: TextSource, part: Part) -> TextSource:
        """The documents of `source` that belong to `part`.

        Raises:
          ValueError: if there is no such part.
        """


@configclass
class ContentSplit(Split):
    """Splits documents by a hash of their text.

    Documents with the same text are in the same part, whatever their names and sources. So no held-out text is trained
    on. Adding documents does not move other documents to another part.
    """

    validation: float = 0.05
    """Expected fraction of the distinct texts held out for evaluation during training."""
    test: float = 0.05
    """Expected fraction of the distinct texts held out for the end."""

    def __post_init__(self) -> None:
        _check_fractions(self.validation, self.test)

    def parts(self) -> tuple[Part, ...]:
        return _parts(self.validation, self.test)

    def part(self, source: TextSource, part: Part) -> TextSource:
        """The documents of `source` that belong to `part`."""
        _check_part(self, part)
        start, stop = _borders(part, self.validation, self.test)
        return _PartByContent(source, part, start, stop)


@configclass
class HashSplit(Split):
    """Splits documents by a hash of their names. Adding documents does not move other documents to another part.

    Documents with the same text and different names may be in different parts. Renaming a document may move it. See
    `ContentSplit`.
    """

    validation: float = 0.05
    """Expected fraction of the documents held out for evaluation during training."""
    test: float = 0.05
    """Expected fraction of the documents held out for the end."""

    def __post_init__(self) -> None:
        _check_fractions(self.validation, self.test)

    def parts(self) -> tuple[Part, ...]:
        return _parts(self.validation, self.test)

    def part(self, source: TextSource, part: Part) -> TextSource:
        """The documents of `source` that belong to `part`."""
        _check_part(self, part)
        start, stop = _borders(part, self.validation, self.test)
        return _PartByName(source, part, start, stop)


@configclass
class RangeSplit(Split):
    """Splits by character position, for a corpus of few files: training text first, then validation, then test."""

    validation: float = 0.1
    """Fraction of the characters."""
    test: float = 0.0
    """Fraction of the characters."""

    def __post_init__(self) -> None:
        _check_fractions(self.validation, self.test)

    def parts(self) -> tuple[Part, ...]:
        return _parts(self.validation, self.test)

    def part(self, source: TextSource, part: Part) -> TextSource:
        """The range of `source` that belongs to `part`. A document across a border is cut there."""
        _check_part(self, part)
        start, stop = _borders(part, self.validation, self.test)
        return _Stretch(source, part, start, stop)


@configclass
class SeparateSources(Split):
    """The corpus is the training part. The other parts have sources of their own."""

    validation: Reader | None = None
    """None: there is no validation part."""
    test: Reader | None = None
    """None: there is no test part."""

    def parts(self) -> tuple[Part, ...]:
        return _parts(self.validation, self.test)

    def part(self, source: TextSource, part: Part) -> TextSource:
        """`source` for training, otherwise the source configured for `part`."""
        _check_part(self, part)
        config = {"train": None, "validation": self.validation, "test": self.test}[part]
        return source if config is None else config.build()


class DerivedSource(TextSource):
    """Documents derived from other sources by a fixed rule."""

    def __init__(self, bases: Sequence[TextSource], rule: str):
        """`rule` describes the rule in words. The digest is computed from it and the digests of the bases."""
        self._bases = tuple(bases)
        self._rule = rule

    @property
    def digest(self) -> str:
        identity = " ".join([self._rule, *(base.digest for base in self._bases)])
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

    @property
    def invalid(self) -> tuple[str, ...]:
        return tuple(name for base in self._bases for name in base.invalid)

    @property
    def empty(self) -> int:
        return sum(base.empty for base in self._bases)

    def __str__(self) -> str:
        return f"{self._rule} of {', '.join(map(str, self._bases))}"


class Joined(DerivedSource):
    """All documents of several sources, one source after the other."""

    def __init__(self, bases: Sequence[TextSource]):
        super().__init__(bases, "all")

    def __iter__(self) -> Iterator[Document]:
        for base in self._bases:
            yield from base


class Limited(DerivedSource):
    """A sample of `max_bytes` of UTF-8 text: the documents with the highest hashes of their names, of which the one
    with the lowest hash is cut at the limit. A character is never cut, so up to three bytes may be missing. Of whole
    documents, such as records, that one is left out, unless it is the only one.

    The documents of the sample are in memory during iteration.
    """

    def __init__(self, base: TextSource, max_bytes: int, whole: bool = False):
        super().__init__([base], f"first {max_bytes} bytes{' of whole documents' * whole} by hash")
        check(max_bytes > 0, f"max_bytes is {max_bytes}: it must be greater than 0, or None for the whole text")
        self._max_bytes, self._whole = max_bytes, whole

    def __iter__(self) -> Iterator[Document]:
        (base,) = self._bases
        # The first entry of the heap has the lowest hash. It is removed as soon as the others reach the limit.
        sample: list[tuple[float, int, int, Document]] = []
        total = 0
        for index, document in enumerate(base):
            size = len(document.text.encode())
            heapq.heappush(sample, (-_hash(document.name), -index, size, document))
            total += size
            while total - sample[0][2] >= self._max_bytes:
                total -= heapq.heappop(sample)[2]
        if total > self._max_bytes and self._whole:
            if len(sample) > 1:
                heapq.heappop(sample)
        elif total > self._max_bytes:
            hash_of_name, index, size, last = heapq.heappop(sample)
            beginning = _beginning(last.text, self._max_bytes - (total - size))
            if beginning:
                sample.append((hash_of_name, index, len(beginning), Document(last.name, beginning)))
        for _, _, _, document in sorted(sample, key=lambda entry: -entry[1]):
            yield document


class _HashedPart(DerivedSource):
    """The documents whose hash is in the interval [start, stop) of [0, 1)."""

    def __init__(self, base: TextSource, part: Part, by: str, start: float, stop: float):
        super().__init__([base], f"{part} part by {by} from {start:.6g} to {stop:.6g}")
        self._start, self._stop = start, stop

    def __iter__(self) -> Iterator[Document]:
        return (document for document in self._bases[0] if self._holds(self._place(document)))

    @property
    def invalid(self) -> tuple[str, ...]:
        """Assigned by name, because a skipped record has no text to hash."""
        return tuple(name for name in super().invalid if self._holds(_hash(name)))

    def _holds(self, place: float) -> bool:
        return self._start <= place < self._stop

    @abc.abstractmethod
    def _place(self, document: Document) -> float:
        """The hash of a document, in [0, 1)."""


class _PartByName(_HashedPart):
    def __init__(self, base: TextSource, part: Part, start: float, stop: float):
        super().__init__(base, part, "hash", start, stop)

    def _place(self, document: Document) -> float:
        return _hash(document.name)


class _PartByContent(_HashedPart):
    def __init__(self, base: TextSource, part: Part, start: float, stop: float):
        super().__init__(base, part, "content", start, stop)

    def _place(self, document: Document) -> float:
        return _fraction(document.digest)


class _Stretch(DerivedSource):
    def __init__(self, base: TextSource, part: Part, start: float, stop: float):
        super().__init__([base], f"{part} part by range from {start:.6g} to {stop:.6g}")
        self._start, self._stop = start, stop

    def __iter__(self) -> Iterator[Document]:
        (base,) = self._bases
        total = sum(len(document.text) for document in base)
        start, stop = int(total * self._start), int(total * self._stop)
        seen = 0
        for document in base:
            first, last = max(start - seen, 0), min(stop - seen, len(document.text))
            seen += len(document.text)
            if first < last:
                yield Document(f"{document.name}[{first}:{last}]", document.text[first:last])


def _hash(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return _fraction(hashlib.sha256(name.encode()).digest())


def _fraction(digest: bytes) -> float:
    """The first 48 bits of a digest as a number in [0, 1)."""
    return int.from_bytes(digest[:6]) / 2**48


def _beginning(text: str, max_bytes: int) -> str:
    """The longest prefix of at most `max_bytes` UTF-8 bytes. A character is never cut."""
    return text.encode()[:max_bytes].decode(errors="ignore")


def _parts(validation: object, test: object) -> tuple[Part, ...]:
    return ("train", *(("validation",) if validation else ()), *(("test",) if test else ()))


def _borders(part: Part, validation: float, test: float) -> tuple[float, float]:
    """The interval of [0, 1] that belongs to `part`."""
    borders = (0.0, 1 - validation - test, 1 - test, 1.0)
    index = ("train", "validation", "test").index(part)
    return borders[index], borders[index + 1]


def _check_part(split: Split, part: Part) -> None:
    check(
        part in split.parts(),
        f"{split} has no {part} part, only {', '.join(split.parts())}: set its field {part!r}, or use another part",
    )


def _check_fractions(validation: float, test: float) -> None:
    check_fraction(validation=validation, test=test)
    check(
        validation + test < 1,
        f"validation is {validation} and test is {test}: their sum must be less than 1, since the rest is the "
        "training part",
    )

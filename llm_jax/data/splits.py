"""Splits: which documents, or which stretch of the text, are for training, for validation and for the final test."""

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
    """Which text is for training, for validation and for the test. Derive a configclass from it to use a split of your
    own."""

    @abc.abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """The parts that there are, 'train' first."""

    @abc.abstractmethod
    def part(self, source: TextSource, part: Part) -> TextSource:
        """The documents of `source` that belong to `part`.

        Raises:
          ValueError: if there is no such part.
        """


@configclass
class ContentSplit(Split):
    """Splits by document: a hash of its text decides.

    Documents with the same text are in the same part, whatever their names and sources are, so that no held-out text is
    trained on. Adding documents moves none of the others.
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
    """Splits by document: a hash of its name decides, so that adding documents moves none of the others.

    Documents with the same text and other names may be in different parts, as may documents that are renamed; see
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
    """Splits by character, for a corpus of one or few files: training text first, then validation, then test."""

    validation: float = 0.1
    """Fraction of the characters."""
    test: float = 0.0
    """Fraction of the characters."""

    def __post_init__(self) -> None:
        _check_fractions(self.validation, self.test)

    def parts(self) -> tuple[Part, ...]:
        return _parts(self.validation, self.test)

    def part(self, source: TextSource, part: Part) -> TextSource:
        """The stretch of `source` that belongs to `part`; a document across a border is cut there."""
        _check_part(self, part)
        start, stop = _borders(part, self.validation, self.test)
        return _Stretch(source, part, start, stop)


@configclass
class SeparateSources(Split):
    """The corpus itself is for training; the other parts have sources of their own."""

    validation: Reader | None = None
    """None: there is no validation part."""
    test: Reader | None = None
    """None: there is no test part."""

    def parts(self) -> tuple[Part, ...]:
        return _parts(self.validation, self.test)

    def part(self, source: TextSource, part: Part) -> TextSource:
        """`source` for training, else the source named for that part."""
        _check_part(self, part)
        config = {"train": None, "validation": self.validation, "test": self.test}[part]
        return source if config is None else config.build()


class DerivedSource(TextSource):
    """Documents made from those of other sources by a fixed rule."""

    def __init__(self, bases: Sequence[TextSource], rule: str):
        """`rule` says in words what is done; with the bases' digests it makes the digest."""
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
    """A sample of `max_bytes` of UTF-8 text: documents in the order of their names' hashes, the last of them cut where
    the sample ends. A character is never cut, so that up to three bytes may be missing.

    The documents of the sample are in memory while they are read.
    """

    def __init__(self, base: TextSource, max_bytes: int):
        super().__init__([base], f"first {max_bytes} bytes by hash")
        check(max_bytes > 0, f"max_bytes is {max_bytes}: it must be greater than 0, or None for the whole text")
        self._max_bytes = max_bytes

    def __iter__(self) -> Iterator[Document]:
        (base,) = self._bases
        # A heap whose first entry has the largest hash: entries beyond the budget leave it as soon as they are known.
        sample: list[tuple[float, int, int, Document]] = []
        total = 0
        for index, document in enumerate(base):
            size = len(document.text.encode())
            heapq.heappush(sample, (-_hash(document.name), -index, size, document))
            total += size
            while total - sample[0][2] >= self._max_bytes:
                total -= heapq.heappop(sample)[2]
        if total > self._max_bytes:
            hash_of_name, index, size, last = heapq.heappop(sample)
            beginning = _beginning(last.text, self._max_bytes - (total - size))
            if beginning:
                sample.append((hash_of_name, index, len(beginning), Document(last.name, beginning)))
        for _, _, _, document in sorted(sample, key=lambda entry: -entry[1]):
            yield document


class _HashedPart(DerivedSource):
    """The documents whose hash lies in a stretch of [0, 1)."""

    def __init__(self, base: TextSource, part: Part, by: str, start: float, stop: float):
        super().__init__([base], f"{part} part by {by} from {start:.6g} to {stop:.6g}")
        self._start, self._stop = start, stop

    def __iter__(self) -> Iterator[Document]:
        return (document for document in self._bases[0] if self._holds(self._place(document)))

    @property
    def invalid(self) -> tuple[str, ...]:
        """By name, since a record that is left out has no text to hash."""
        return tuple(name for name in super().invalid if self._holds(_hash(name)))

    def _holds(self, place: float) -> bool:
        return self._start <= place < self._stop

    @abc.abstractmethod
    def _place(self, document: Document) -> float:
        """Where in [0, 1) a document is."""


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
    """The longest beginning of at most `max_bytes`; a character is never cut."""
    return text.encode()[:max_bytes].decode(errors="ignore")


def _parts(validation: object, test: object) -> tuple[Part, ...]:
    return ("train", *(("validation",) if validation else ()), *(("test",) if test else ()))


def _borders(part: Part, validation: float, test: float) -> tuple[float, float]:
    """Where `part` lies in [0, 1]."""
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
        f"validation is {validation} and test is {test}: together they must be less than 1, so that text is left to "
        "train on",
    )

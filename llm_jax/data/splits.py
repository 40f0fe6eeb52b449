"""Splits: which documents, or which stretch of the text, are for training, for validation and for the final test."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Literal

from llm_jax.core.checks import check, check_fraction
from llm_jax.data.sources import Document, SourceConfig, TextSource

Part = Literal["train", "validation", "test"]


@dataclasses.dataclass(frozen=True)
class HashSplit:
    """Splits by document: a hash of its name decides, so that adding documents moves none of the others."""

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
        return _HashedPart(source, part, start, stop)


@dataclasses.dataclass(frozen=True)
class RangeSplit:
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


@dataclasses.dataclass(frozen=True)
class SeparateSources:
    """The corpus itself is for training; the other parts have sources of their own."""

    validation: SourceConfig | None = None
    """None: there is no validation part."""
    test: SourceConfig | None = None
    """None: there is no test part."""

    def parts(self) -> tuple[Part, ...]:
        return _parts(self.validation, self.test)

    def part(self, source: TextSource, part: Part) -> TextSource:
        """`source` for training, else the source named for that part."""
        _check_part(self, part)
        config = {"train": None, "validation": self.validation, "test": self.test}[part]
        return source if config is None else config.build()


SplitConfig = HashSplit | RangeSplit | SeparateSources


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
    """A sample of at most `max_bytes` of UTF-8 text: whole documents in the order of their names' hashes, up to the
    first that does not fit. If that is the very first, its beginning is the sample.
    """

    def __init__(self, base: TextSource, max_bytes: int):
        super().__init__([base], f"sample of {max_bytes} bytes")
        check(max_bytes > 0, f"max_bytes is {max_bytes}: it must be greater than 0, or None for the whole text")
        self._max_bytes = max_bytes

    def __iter__(self) -> Iterator[Document]:
        (base,) = self._bases
        sizes = [(_hash(document.name), len(document.text.encode()), index) for index, document in enumerate(base)]
        chosen, left = set(), self._max_bytes
        for _, size, index in sorted(sizes):
            if size > left and chosen:
                break
            chosen.add(index)
            left -= size
        for index, document in enumerate(base):
            if index in chosen:
                yield Document(document.name, _beginning(document.text, self._max_bytes))


class _HashedPart(DerivedSource):
    def __init__(self, base: TextSource, part: Part, start: float, stop: float):
        super().__init__([base], f"{part} part by hash from {start:.6g} to {stop:.6g}")
        self._start, self._stop = start, stop

    def __iter__(self) -> Iterator[Document]:
        return (document for document in self._bases[0] if self._holds(document.name))

    @property
    def invalid(self) -> tuple[str, ...]:
        return tuple(filter(self._holds, super().invalid))

    def _holds(self, name: str) -> bool:
        return self._start <= _hash(name) < self._stop


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
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / 2**48


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


def _check_part(split: SplitConfig, part: Part) -> None:
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

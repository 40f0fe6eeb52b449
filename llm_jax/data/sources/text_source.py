"""The interface of readers of text: documents in a fixed order, and a digest of their content."""

import abc
import codecs
import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from llm_jax.core.checks import check, check_one_of
from llm_jax.core.configclass import configclass
from llm_jax.data import known_files

InvalidUtf8 = Literal["error", "skip", "replace"]
"""Policy for text that is not UTF-8. error: raise an error with the file position and the byte. skip: leave the
document out. replace: each undecodable byte, and each lone surrogate escaped in a JSON string, becomes U+FFFD."""

EmptyText = Literal["skip", "keep", "error"]
"""Policy for a document without a character. skip: leave it out and count it. keep: keep it, so that only its boundary
tokens remain. error: raise an error with its position."""

_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"
_SURROGATES = re.compile("[\ud800-\udfff]")

_SURVEY = "survey 1"
"""Name and version of the survey of records. Increase the version whenever readers read the same bytes differently."""


@dataclasses.dataclass(frozen=True)
class Document:
    """One text, with its name."""

    name: str
    """Path relative to the corpus, so that a corpus can be moved."""
    text: str

    @property
    def digest(self) -> bytes:
        """Sixteen-byte hash of the exact text. Documents with equal digests are duplicates."""
        return hashlib.blake2b(self.text.encode(), digest_size=16).digest()


class TextSource(abc.ABC):
    """Documents in a fixed order. It can be iterated any number of times."""

    @abc.abstractmethod
    def __iter__(self) -> Iterator[Document]:
        """Yields the documents.

        Raises:
          ValueError: for anything that cannot be read or decoded. The message gives the position.
        """

    @property
    @abc.abstractmethod
    def digest(self) -> str:
        """Sixteen hex digits that depend on the documents' names and bytes."""

    @property
    @abc.abstractmethod
    def invalid(self) -> tuple[str, ...]:
        """Names of the records that are not UTF-8 and that the policy skips or repairs."""

    @property
    @abc.abstractmethod
    def empty(self) -> int:
        """Number of documents without a character, which the policy skips or keeps."""

    @abc.abstractmethod
    def __str__(self) -> str:
        """Short description of the source for messages."""


@dataclasses.dataclass(frozen=True)
class Record:
    """Raw bytes of one stored record, which holds one or more documents."""

    name: str
    place: str
    """Path (and line) for error messages."""
    data: bytes


@dataclasses.dataclass(frozen=True)
class Storage:
    """One file with records, or several files that hold records together."""

    name: str
    """Path relative to the corpus."""
    paths: tuple[Path, ...]


@configclass
class Reader(abc.ABC):
    """Where text is read from. Derive a configclass from it for your own reader."""

    @abc.abstractmethod
    def build(self) -> TextSource:
        """The documents, ready to be read.

        Raises:
          ValueError: for files that are missing.
        """


class RecordSource(TextSource):
    """Text from byte records in files.

    Removes a byte order mark at the beginning of a record, or of a document within a record.
    """

    def __init__(self, title: str, invalid_utf8: InvalidUtf8, empty: EmptyText, parsing: tuple = ()):
        """`parsing` holds the settings that determine which documents are read from the same bytes."""
        self._title = title
        self._invalid_utf8 = invalid_utf8
        self._empty = empty
        # "skip" and "error" are not in the digest: without empty documents both read the same text.
        self._parsing = (*parsing, "empty texts are kept") if empty == "keep" else parsing

    @abc.abstractmethod
    def storages(self) -> Sequence[Storage]:
        """The storages of the records, in a fixed order."""

    @abc.abstractmethod
    def records(self, storage: Storage) -> Iterator[Record]:
        """Yields the raw records of one storage in a fixed order."""

    def documents(self, record: Record, text: str) -> Iterator[Document]:
        """The documents of one decoded record. Their text may contain lone surrogates."""
        yield Document(record.name, text)

    def __iter__(self) -> Iterator[Document]:
        for storage in self.storages():
            for record in self.records(storage):
                yield from self._read(record).documents

    def __str__(self) -> str:
        return self._title

    @property
    def digest(self) -> str:
        return self._survey.digest

    @property
    def invalid(self) -> tuple[str, ...]:
        return self._survey.invalid

    @property
    def empty(self) -> int:
        return self._survey.empty

    @functools.cached_property
    def _survey(self) -> "_Survey":
        """Result of one pass over the records. Storages unchanged since an earlier pass are not read again."""
        settings = repr((type(self).__name__, self._invalid_utf8, self._empty, *self._parsing))
        storages = list(self.storages())
        questions = [known_files.Question(f"{_SURVEY} {settings} {item.name}", item.paths) for item in storages]
        asked = dict(zip(questions, storages, strict=True))
        found = known_files.answers(questions, lambda question: self._surveyed(asked[question]))
        content = hashlib.sha256(repr((self._invalid_utf8, *self._parsing)).encode())
        for storage in found:
            content.update(bytes.fromhex(storage["content"]))
        invalid = tuple(name for storage in found for name in storage["invalid"])
        return _Survey(content.hexdigest()[:16], invalid, sum(storage["empty"] for storage in found))

    def _surveyed(self, storage: Storage) -> dict[str, Any]:
        content, invalid, empty, nothing = hashlib.sha256(), [], 0, True
        for record in self.records(storage):
            data = without_bom(record.data)
            if data or self._empty != "skip":
                content.update(f"{record.name}\0{len(data)}\0".encode("utf-8", "surrogateescape"))
                content.update(data)
                nothing = False
            found = self._read(record)
            invalid += [record.name] * found.invalid
            empty += found.empty
        return {"content": "" if nothing else content.hexdigest(), "invalid": invalid, "empty": empty}

    def _read(self, record: Record) -> "_Reading":
        """Raises ValueError for text that the policies do not allow. The message gives the position."""
        decoded, valid = self._decoded(record)
        if decoded is None:
            return _Reading((), invalid=True, empty=0)
        documents, empty = [], 0
        for document in self.documents(record, decoded):
            text, is_unicode = self._without_surrogates(record.place, document.text.removeprefix(_BOM))
            valid &= is_unicode
            if text == "":
                empty += 1
                check(
                    self._empty != "error",
                    f"{record.place}: the text is empty; remove it, or set empty to 'skip' or 'keep'",
                )
            if text or (text == "" and self._empty == "keep"):
                documents.append(Document(document.name, text))
        return _Reading(tuple(documents), not valid, empty)

    def _decoded(self, record: Record) -> tuple[str | None, bool]:
        """The record as text, None if it is skipped; and whether it was UTF-8."""
        data = without_bom(record.data)
        try:
            return data.decode(), True
        except UnicodeDecodeError as error:
            byte = error.start + len(record.data) - len(data)
            self._check_repairable(f"{record.place} is not UTF-8: byte {byte} is 0x{record.data[byte]:02x}")
        return (None if self._invalid_utf8 == "skip" else data.decode(errors="replace")), False

    def _without_surrogates(self, place: str, text: str) -> tuple[str | None, bool]:
        """The text without lone surrogates, None if it is skipped; and whether it had none."""
        surrogate = _SURROGATES.search(text)
        if surrogate is None:
            return text, True
        self._check_repairable(
            f"{place}: the text holds the lone surrogate U+{ord(surrogate[0]):04X} at character {surrogate.start()}, "
            "which no UTF-8 text can hold"
        )
        return (None if self._invalid_utf8 == "skip" else _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)), False

    def _check_repairable(self, what: str) -> None:
        check(self._invalid_utf8 != "error", f"{what}; convert it, or set invalid_utf8 to 'skip' or 'replace'")


@dataclasses.dataclass(frozen=True)
class _Reading:
    """The documents of one record, and its counts."""

    documents: tuple[Document, ...]
    invalid: bool
    """Whether something in it is not valid Unicode text."""
    empty: int
    """Documents in it without a character."""


@dataclasses.dataclass(frozen=True)
class _Survey:
    """Statistics of a whole source. See the properties of `TextSource`."""

    digest: str
    invalid: tuple[str, ...]
    empty: int


def without_bom(data: bytes) -> bytes:
    """`data` without a UTF-8 byte order mark at its beginning, which some editors write."""
    return data.removeprefix(codecs.BOM_UTF8)


def check_policies(invalid_utf8: str, empty: str) -> None:
    """Checks a reader's policies for invalid and for empty text."""
    check_one_of("invalid_utf8", invalid_utf8, ("error", "skip", "replace"))
    check_one_of("empty", empty, ("skip", "keep", "error"))

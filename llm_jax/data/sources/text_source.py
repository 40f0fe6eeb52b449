"""Text as every reader gives it: documents in a fixed order, and a digest of their content."""

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
"""What becomes of text that is not UTF-8: an error naming place and byte; the document is left out; or every
undecodable byte, and every lone surrogate that a JSON string escapes, becomes U+FFFD."""

EmptyText = Literal["skip", "keep", "error"]
"""What becomes of a document without a character: it is left out and counted; it stays, so that a model reads nothing
but its boundary tokens; or an error naming the place."""

_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"
_SURROGATES = re.compile("[\ud800-\udfff]")

_SURVEY = "survey 1"
"""Names how records are surveyed. Counts up with every change of what readers make of the same bytes."""


@dataclasses.dataclass(frozen=True)
class Document:
    """One text that a model reads from its beginning to its end."""

    name: str
    """Path within its corpus, not on this machine, so that a corpus may be moved."""
    text: str

    @property
    def digest(self) -> bytes:
        """Sixteen bytes that depend on the text alone, exactly as it is: documents with one digest are duplicates."""
        return hashlib.blake2b(self.text.encode(), digest_size=16).digest()


class TextSource(abc.ABC):
    """Documents in a fixed order. May be iterated any number of times."""

    @abc.abstractmethod
    def __iter__(self) -> Iterator[Document]:
        """Yields the documents.

        Raises:
          ValueError: for anything that cannot be read or decoded; the message gives the place.
        """

    @property
    @abc.abstractmethod
    def digest(self) -> str:
        """Sixteen hex digits that depend on the documents' names and bytes."""

    @property
    @abc.abstractmethod
    def invalid(self) -> tuple[str, ...]:
        """Names of the records that are not UTF-8, which the policy skips or repairs."""

    @property
    @abc.abstractmethod
    def empty(self) -> int:
        """How many documents without a character were read, which the policy skips or keeps."""

    @abc.abstractmethod
    def __str__(self) -> str:
        """A few words that name the source in messages."""


@dataclasses.dataclass(frozen=True)
class Record:
    """Raw bytes as they lie in storage; one record holds one document or several."""

    name: str
    place: str
    """Path (and line) as the user should read it in an error."""
    data: bytes


@dataclasses.dataclass(frozen=True)
class Storage:
    """One file that holds records, or several that hold them together."""

    name: str
    """Its place in the corpus, not on this machine."""
    paths: tuple[Path, ...]


@configclass
class Reader(abc.ABC):
    """Where text is read. Derive a configclass from it to read text of your own."""

    @abc.abstractmethod
    def build(self) -> TextSource:
        """The documents, ready to be read.

        Raises:
          ValueError: for files that are missing.
        """


class RecordSource(TextSource):
    """Text that comes from records of bytes in files.

    No document begins with a byte order mark: the one that begins a record, or a document within it, is removed.
    """

    def __init__(self, title: str, invalid_utf8: InvalidUtf8, empty: EmptyText, parsing: tuple = ()):
        """`parsing` holds the settings that decide what documents are read from the same bytes."""
        self._title = title
        self._invalid_utf8 = invalid_utf8
        self._empty = empty
        # "skip" is not named: text without an empty document has one digest under both policies that leave none.
        self._parsing = (*parsing, "empty texts are kept") if empty == "keep" else parsing

    @abc.abstractmethod
    def storages(self) -> Sequence[Storage]:
        """All that the records are read from, in their fixed order."""

    @abc.abstractmethod
    def records(self, storage: Storage) -> Iterator[Record]:
        """Yields the raw records of one storage in their fixed order."""

    def documents(self, record: Record, text: str) -> Iterator[Document]:
        """The documents within one decoded record. Their text may hold lone surrogates."""
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
        """From one pass over the records of every storage that has changed since the last one."""
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
        """Raises ValueError for what the policies do not admit; names the place."""
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
        """The record as text, None if it is skipped; and whether it is UTF-8."""
        data = without_bom(record.data)
        try:
            return data.decode(), True
        except UnicodeDecodeError as error:
            byte = error.start + len(record.data) - len(data)
            self._check_repairable(f"{record.place} is not UTF-8: byte {byte} is 0x{record.data[byte]:02x}")
        return (None if self._invalid_utf8 == "skip" else data.decode(errors="replace")), False

    def _without_surrogates(self, place: str, text: str) -> tuple[str | None, bool]:
        """The text as Unicode, None if it is skipped; and whether it was Unicode already."""
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
    """What one record gives."""

    documents: tuple[Document, ...]
    invalid: bool
    """Whether something in it is no Unicode text."""
    empty: int
    """Documents in it without a character."""


@dataclasses.dataclass(frozen=True)
class _Survey:
    """What a whole source gives. See the properties of `TextSource`."""

    digest: str
    invalid: tuple[str, ...]
    empty: int


def without_bom(data: bytes) -> bytes:
    """`data` without the byte order mark of UTF-8 that some editors write at the beginning of a file."""
    return data.removeprefix(codecs.BOM_UTF8)


def check_policies(invalid_utf8: str, empty: str) -> None:
    """The fields of a reader that say what becomes of text that is no text."""
    check_one_of("invalid_utf8", invalid_utf8, ("error", "skip", "replace"))
    check_one_of("empty", empty, ("skip", "keep", "error"))

"""Text as every reader gives it: documents in a fixed order, and a digest of their content."""

import abc
import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import Literal

InvalidUtf8 = Literal["error", "skip", "replace"]
"""What becomes of text that is not UTF-8: an error naming place and byte; the document is left out; or every
undecodable byte becomes U+FFFD."""


@dataclasses.dataclass(frozen=True)
class Document:
    """One text that a model reads from its beginning to its end."""

    name: str
    """Where it stands in its corpus, not on this machine: splits hash it, so a corpus may be moved."""
    text: str


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


class RecordSource(TextSource):
    """Text that comes from records of bytes."""

    def __init__(self, title: str, invalid_utf8: InvalidUtf8, parsing: tuple = ()):
        """`parsing` holds the settings that decide what documents are read from the same bytes."""
        self._title = title
        self._invalid_utf8 = invalid_utf8
        self._parsing = parsing

    @abc.abstractmethod
    def records(self) -> Iterator[Record]:
        """Yields the raw records in their fixed order."""

    def documents(self, record: Record, text: str) -> Iterator[Document]:
        """The documents within one decoded record."""
        yield Document(record.name, text)

    def __iter__(self) -> Iterator[Document]:
        for record in self.records():
            text = self._decode(record)
            if text is not None:
                yield from self.documents(record, text)

    def __str__(self) -> str:
        return self._title

    @property
    def digest(self) -> str:
        return self._survey[0]

    @property
    def invalid(self) -> tuple[str, ...]:
        return self._survey[1]

    @functools.cached_property
    def _survey(self) -> tuple[str, tuple[str, ...]]:
        """Digest and names of invalid records, from one pass over the bytes."""
        content = hashlib.sha256(repr((self._invalid_utf8, *self._parsing)).encode())
        invalid = []
        for record in self.records():
            content.update(f"{record.name}\0{len(record.data)}\0".encode())
            content.update(record.data)
            if not _is_utf8(record.data):
                invalid.append(record.name)
        return content.hexdigest()[:16], tuple(invalid)

    def _decode(self, record: Record) -> str | None:
        try:
            return record.data.decode(errors="replace" if self._invalid_utf8 == "replace" else "strict")
        except UnicodeDecodeError as error:
            if self._invalid_utf8 == "skip":
                return None
            raise ValueError(
                f"{record.place} is not UTF-8: byte {error.start} is 0x{record.data[error.start]:02x}; convert it, "
                "or set invalid_utf8 to 'skip' or 'replace'"
            ) from error


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True

"""Token ids on disk: a stream of documents in shards, each with a checksum.

    tokens-00000.bin   unsigned little-endian integers: the stream, cut between pieces once a shard is large enough
    tokens-00001.bin   ...
    offsets.bin        int64 [documents + 1], little-endian: where each document begins in the stream
    journal.jsonl      one line for each finished shard, written after its bytes are on the disk
    manifest.json      identity, sizes, checksums of all files; written last: a folder without it is not finished

Checksums are CRC-32 of zlib. It comes with Python, is as fast as a disk, and can continue from a stored value. It must
detect damage, not forgery. The content digest is SHA-256 over the whole stream, so it does not depend on the shards.
"""

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from llm_jax.core.files import write_atomically
from llm_jax.data import known_files
from llm_jax.data.encoding import EncodedPieces, token_type

SHARD_TOKENS = 2**25
"""A shard ends after the piece with which it reaches this number of tokens."""
_MOST_MAPPED = 4096
_BLOCK = 2**24
_OFFSETS, _JOURNAL, _MANIFEST = "offsets.bin", "journal.jsonl", "manifest.json"


class ShardedTokens:
    """Integers [N] in several files, each of which is memory-mapped at its first use."""

    def __init__(self, paths: Sequence[Path], sizes: Sequence[int], dtype: np.dtype):
        """`sizes` are in tokens."""
        self.dtype = dtype
        self._paths = tuple(paths)
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        # A list for lookups of single slices: Python's bisect is ten times as fast there as numpy.
        self._borders = self._starts.tolist()
        self._mapped = functools.lru_cache(_MOST_MAPPED)(self._map)

    def __len__(self) -> int:
        return self._borders[-1]

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        """The tokens of a slice without step, or at indices int64 [M] in any order. A slice of one shard is a view."""
        if len(self._paths) == 1:
            return self._mapped(0)[index]
        if isinstance(index, slice):
            start, stop, _ = index.indices(self._borders[-1])
            shard = bisect.bisect_right(self._borders, start) - 1
            if start < stop <= self._borders[shard + 1]:
                return self._mapped(shard)[start - self._borders[shard] : stop - self._borders[shard]]
            index = np.arange(start, stop)
        shards = np.searchsorted(self._starts, index, side="right") - 1
        # Rows consist of contiguous ranges, so few neighbouring indices are in different shards.
        borders = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(index)]
        found = np.empty(len(index), self.dtype)
        for begin, end in itertools.pairwise(borders) if len(index) else ():
            shard = shards[begin]
            found[begin:end] = self._mapped(shard)[index[begin:end] - self._starts[shard]]
        return found

    def _map(self, shard: int) -> np.ndarray:
        # A plain array view of the mapping: indexing a memmap object is several times as slow.
        return np.asarray(np.memmap(self._paths[shard], self.dtype, mode="r")).view(np.ndarray)


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished shard, with cumulative counts up to its end."""

    tokens: int
    """Tokens in this shard."""
    checksum: int
    """Checksum of its file."""
    pieces: int
    """Pieces up to its end."""
    documents: int
    """Documents that end in it or before it."""
    text_bytes: int
    """UTF-8 bytes of the text up to its end."""
    offsets_checksum: int
    """Checksum of the offsets of the documents up to its end."""


class ShardWriter:
    """Writes a folder, or continues an interrupted one after its last intact shard."""

    def __init__(self, folder: Path, vocab_size: int):
        self._folder = folder
        self._dtype = token_type(vocab_size)
        self._content = hashlib.sha256()
        self.shards: list[Shard] = []
        """The finished shards."""
        self.tokens = 0
        """Number of tokens written so far."""
        folder.mkdir(parents=True, exist_ok=True)
        self._recover()
        self._offsets = open(folder / _OFFSETS, "ab")  # noqa: SIM115
        self._begin()

    @property
    def done(self) -> Shard:
        """The last finished shard, or an empty one."""
        return self.shards[-1] if self.shards else Shard(0, 0, 0, 0, 0, zlib.crc32(bytes(8)))

    def write(self, batch: EncodedPieces) -> None:
        """Appends pieces. Finishes every shard that becomes full."""
        first = 0
        while first < len(batch.ends):
            begin = int(batch.ends[first - 1]) if first else 0
            room = SHARD_TOKENS - self._size
            stop = min(int(np.searchsorted(batch.ends, begin + room)) + 1, len(batch.ends))
            self._append(batch, first, stop, begin)
            if self._size >= SHARD_TOKENS:
                self._finish_shard()
            first = stop

    def finish(self, identity: dict[str, Any]) -> dict[str, Any]:
        """Writes the last shard and the manifest, and returns the manifest."""
        if self._pieces:
            self._finish_shard()
        self.close()
        done = self.done
        manifest = {
            "identity": identity,
            "dtype": self._dtype.name,
            "tokens": self.tokens,
            "documents": done.documents,
            "text_bytes": done.text_bytes,
            "content": self._content.hexdigest(),
            "shards": [[shard.tokens, shard.checksum] for shard in self.shards],
            "offsets": done.offsets_checksum,
        }
        write_atomically(self._folder / _MANIFEST, json.dumps(manifest | {"checksum": _json_checksum(manifest)}))
        return manifest

    def close(self) -> None:
        """Closes the files. The next writer writes an unfinished shard again."""
        self._offsets.close()
        if self._file is not None:
            self._file.close()

    def _recover(self) -> None:
        """Reads the journal and its shards up to the first shard that is not intact. Removes everything after that."""
        (self._folder / _MANIFEST).unlink(missing_ok=True)
        offsets = self._folder / _OFFSETS
        lines = []
        for line, shard in _journal(self._folder / _JOURNAL):
            if not self._holds(shard):
                break
            lines.append(line)
            self.shards.append(shard)
            self.tokens += shard.tokens
        write_atomically(self._folder / _JOURNAL, "".join(lines))
        if self.shards:
            _cut(offsets, 8 * (self.done.documents + 1))
        else:
            write_atomically(offsets, bytes(8))
        names = {_shard_name(number) for number in range(len(self.shards))} | {_OFFSETS, _JOURNAL}
        for path in self._folder.iterdir():
            if path.name not in names:
                path.unlink()

    def _holds(self, shard: Shard) -> bool:
        """Whether the next shard agrees with the journal. If so, adds the shard to the content digest."""
        path = self._folder / _shard_name(len(self.shards))
        content = self._content.copy()
        checksum, size = 0, 0
        try:
            with open(path, "rb") as file:
                while block := file.read(_BLOCK):
                    content.update(block)
                    checksum = zlib.crc32(block, checksum)
                    size += len(block)
        except FileNotFoundError:
            return False
        offsets = _checksum_of_beginning(self._folder / _OFFSETS, 8 * (shard.documents + 1))
        if (size, checksum, offsets) != (shard.tokens * self._dtype.itemsize, shard.checksum, shard.offsets_checksum):
            return False
        self._content = content
        return True

    def _begin(self) -> None:
        """Starts the next shard. `_append` creates its file with the first piece."""
        done = self.done
        self._file: IO[bytes] | None = None
        self._size, self._checksum, self._pieces = 0, 0, 0
        self._documents, self._text_bytes, self._offsets_checksum = (
            done.documents,
            done.text_bytes,
            done.offsets_checksum,
        )

    def _append(self, batch: EncodedPieces, first: int, stop: int, begin: int) -> None:
        if self._file is None:
            self._file = open(self._folder / _shard_name(len(self.shards)), "wb")  # noqa: SIM115
        tokens = batch.tokens[begin : batch.ends[stop - 1]].tobytes()
        self._file.write(tokens)
        self._checksum = zlib.crc32(tokens, self._checksum)
        self._content.update(tokens)
        ends = batch.ends[first:stop][batch.last[first:stop]] - begin + self.tokens
        offsets = ends.astype("<i8").tobytes()
        self._offsets.write(offsets)
        self._offsets_checksum = zlib.crc32(offsets, self._offsets_checksum)
        count = int(batch.ends[stop - 1]) - begin
        self._size += count
        self.tokens += count
        self._pieces += stop - first
        self._documents += len(ends)
        self._text_bytes += int(batch.text_bytes[first:stop].sum())

    def _finish_shard(self) -> None:
        """Writes the shard to the disk, then its line in the journal."""
        for file in (self._file, self._offsets):
            if file is not None:
                _to_disk(file)
        if self._file is not None:
            self._file.close()
        pieces = self.done.pieces + self._pieces
        self.shards.append(
            Shard(self._size, self._checksum, pieces, self._documents, self._text_bytes, self._offsets_checksum)
        )
        with open(self._folder / _JOURNAL, "a") as journal:
            journal.write(_journal_line(self.shards[-1]))
            _to_disk(journal)
        self._begin()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished folder.

    Raises:
      ValueError: if it is missing or damaged.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        checksum = manifest.pop("checksum")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{_MANIFEST}: {error}") from error
    if checksum != _json_checksum(manifest):
        raise ValueError(f"{_MANIFEST} does not have the checksum that it states")
    return manifest


def has_finished_shards(folder: Path) -> bool:
    """Whether the folder has finished shards, so that a `ShardWriter` would continue after them."""
    return next(_journal(folder / _JOURNAL), None) is not None


def damage(folder: Path, manifest: dict[str, Any], vocab_size: int) -> str | None:
    """How the folder differs from the manifest; None if it does not. Reads a file only if its checksum is not known."""
    dtype = token_type(vocab_size)
    if manifest["dtype"] != dtype.name:
        return f"the dtype is {manifest['dtype']} and must be {dtype.name} for a vocabulary of {vocab_size}"
    expected = {
        _shard_name(number): (tokens * dtype.itemsize, checksum)
        for number, (tokens, checksum) in enumerate(manifest["shards"])
    } | {_OFFSETS: (8 * (manifest["documents"] + 1), manifest["offsets"])}
    for name, (size, _) in expected.items():
        try:
            found = (folder / name).stat().st_size
        except OSError as error:
            return f"{name}: {error.strerror}"
        if found != size:
            return f"{name} has {found} bytes and should have {size}"
    questions = [_question(folder, name) for name in expected]
    try:
        checksums = known_files.answers(questions, lambda question: known_files.checksum(question.paths[0]))
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    for found, (name, (_, checksum)) in zip(checksums, expected.items(), strict=True):
        if found != checksum:
            return f"{name} does not have the checksum that it was written with"
    return None


def remember_checksums(folder: Path, manifest: dict[str, Any]) -> None:
    """Stores the checksums of a folder just written, so that the next `damage` does not read its files."""
    known = {
        _question(folder, _shard_name(number)): checksum for number, (_, checksum) in enumerate(manifest["shards"])
    }
    known_files.remember(known | {_question(folder, _OFFSETS): manifest["offsets"]})


def mapped(folder: Path, manifest: dict[str, Any]) -> tuple[ShardedTokens, np.ndarray]:
    """The token stream, and the offsets of the documents in it, int64 [documents + 1]."""
    sizes = [tokens for tokens, _ in manifest["shards"]]
    paths = [folder / _shard_name(number) for number in range(len(sizes))]
    offsets = np.memmap(folder / _OFFSETS, "<i8", mode="r")
    tokens = ShardedTokens(paths, sizes, np.dtype(manifest["dtype"]).newbyteorder("<"))
    return tokens, np.asarray(offsets).view(np.ndarray)


def _shard_name(number: int) -> str:
    return f"tokens-{number:05d}.bin"


def _question(folder: Path, name: str) -> known_files.Question:
    return known_files.Question("checksum", (folder / name,))


def _journal(path: Path) -> Iterator[tuple[str, Shard]]:
    """The journal's lines and their shards, up to the first incomplete line."""
    if not path.exists():
        return
    for line in path.read_bytes().decode(errors="replace").splitlines(keepends=True):
        try:
            shard = Shard(**json.loads(line)["shard"])
        except (ValueError, KeyError, TypeError):
            return
        if line != _journal_line(shard):
            return
        yield line, shard


def _journal_line(shard: Shard) -> str:
    content = dataclasses.asdict(shard)
    return json.dumps({"shard": content, "checksum": _json_checksum(content)}) + "\n"


def _json_checksum(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _checksum_of_beginning(path: Path, size: int) -> int | None:
    """Checksum of the first `size` bytes; None if the file is shorter."""
    checksum = 0
    if not path.exists():
        return None
    with open(path, "rb") as file:
        while size:
            block = file.read(min(size, _BLOCK))
            if not block:
                return None
            checksum = zlib.crc32(block, checksum)
            size -= len(block)
    return checksum


def _cut(path: Path, size: int) -> None:
    """Truncates to `size` bytes, by a new file, because another process may have mapped the old one."""
    if path.stat().st_size == size:
        return
    beginning = path.with_name(f"{path.name}.beginning")
    with open(path, "rb") as whole, open(beginning, "wb") as file:
        while size and (block := whole.read(min(size, _BLOCK))):
            file.write(block)
            size -= len(block)
        _to_disk(file)
    os.replace(beginning, path)


def _to_disk(file: IO) -> None:
    file.flush()
    os.fsync(file.fileno())

"""Tokenised text on disk: written once for each pair of text and tokenizer, then memory-mapped.

    <cache>/tokens/<key>/            a finished entry, see shards.py
    <cache>/tokens/<key>.building/   an entry in progress or interrupted; the next process continues it
    <cache>/tokens/<key>.lock        held by the process that writes the entry

Each machine reads an entry's files once and compares their checksums. Later starts compare only sizes and times.
A damaged entry is treated as an interrupted one: the shards before the damage are kept.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rich.console
import rich.progress

from llm_jax.core.checks import check, given
from llm_jax.data import shards
from llm_jax.data.encoding import Encoding, encoded
from llm_jax.data.examples import Row
from llm_jax.data.sources import TextSource

_FORMAT = 2


@dataclasses.dataclass(frozen=True)
class TokenDocuments:
    """Documents as token ids."""

    tokens: np.ndarray | shards.ShardedTokens
    """Unsigned integers [total]: all documents concatenated, with boundary tokens. Index it by slice or index array."""
    offsets: np.ndarray
    """int64 [documents + 1]: start of each document in `tokens`, and the end of the last."""
    text_bytes: int
    """UTF-8 bytes of the text of all documents."""
    digest: str
    """Sixteen hex digits: hash of the tokens."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def read(self, parts: np.ndarray, starts: np.ndarray, stops: np.ndarray, epoch: int) -> Row:
        """`tokens` [sum(stops - starts)]: the tokens from `starts` to `stops` of each document in `parts`,
        concatenated. `epoch` has no effect here."""
        lengths = stops - starts
        # Start of each range minus the number of tokens before it in the result: adding the index in the result gives
        # the place.
        first = self.offsets[parts] + starts - (np.cumsum(lengths) - lengths)
        return {"tokens": self.tokens[np.repeat(first, lengths) + np.arange(lengths.sum())]}

    @property
    def lengths(self) -> np.ndarray:
        """int64 [documents]."""
        return np.diff(self.offsets)

    @property
    def total(self) -> int:
        """Tokens in all documents."""
        return len(self.tokens)


def tokenized(source: TextSource, encoding: Encoding, cache: Path) -> TokenDocuments:
    """The documents of `source` as `encoding` makes them: read from the cache, or tokenised now and added to it.

    A killed process leaves its finished shards, and the next process continues after them. If several processes need
    the same entry, one writes it and the others wait. None of this changes the result.

    Raises:
      ValueError: if the source has no text, cannot be read, or the cache cannot be written.
    """
    identity = {
        "format": _FORMAT,
        "tokenizer": encoding.tokenizer.digest,
        "vocab_size": encoding.bound,
        "text": source.digest,
        **encoding.identity,
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    entry = _Entry(cache / "tokens" / key, identity)
    try:
        return entry.read() or entry.make(source, encoding)
    except OSError as error:
        raise ValueError(
            f"token cache {entry.folder} cannot be written ({error.strerror or error}): free some space, make the "
            "folder writable, or choose another cache folder"
        ) from error


class _Entry:
    """One entry of the cache."""

    def __init__(self, folder: Path, identity: dict):
        self.folder = folder
        self._building = folder.with_name(f"{folder.name}.building")
        self._identity = identity
        self._console = rich.console.Console(stderr=True)
        self._damaged = False

    def read(self) -> TokenDocuments | None:
        """The documents; None if the entry is missing or damaged. Damage is reported in one message.

        Raises:
          ValueError: if the entry is intact but was made from another text or with another tokenizer.
        """
        if not self.folder.exists():
            return None
        try:
            manifest = shards.read_manifest(self.folder)
        except ValueError as error:
            return self._say_damaged(str(error))
        self._check_identity(manifest["identity"])
        damage = shards.damage(self.folder, manifest, self._identity["vocab_size"])
        if damage is not None:
            return self._say_damaged(damage)
        tokens, offsets = shards.mapped(self.folder, manifest)
        return TokenDocuments(tokens, offsets, manifest["text_bytes"], manifest["content"][:16])

    def make(self, source: TextSource, encoding: Encoding) -> TokenDocuments:
        """Writes the entry, or waits for the process that writes it."""
        with self._locked():
            # Another process may have written it while this one waited for the lock.
            found = self.read()
            if found is not None:
                return found
            if self.folder.exists():
                shutil.rmtree(self._building, ignore_errors=True)
                os.rename(self.folder, self._building)
            try:
                manifest = self._build(source, encoding)
            except BaseException:
                if not shards.has_finished_shards(self._building):
                    shutil.rmtree(self._building, ignore_errors=True)
                raise
            os.rename(self._building, self.folder)
            shards.remember_checksums(self.folder, manifest)
        return given(self.read(), f"{self.folder} was damaged while it was written: check the disk and the memory")

    def _build(self, source: TextSource, encoding: Encoding) -> dict:
        with contextlib.closing(shards.ShardWriter(self._building, encoding.bound)) as writer:
            done = writer.done
            if done.pieces:
                self._say(f"tokenising the {source} continues after {done.documents:,} documents", "dim")
            rest = itertools.islice(encoding.pieces(source), done.pieces, None)
            with self._progress(str(source)) as progress:
                progress.update(progress.task_ids[0], completed=done.text_bytes)
                for batch in encoded(rest, encoding):
                    writer.write(batch)
                    progress.advance(progress.task_ids[0], int(batch.text_bytes.sum()))
            check(writer.tokens > 0, f"there is no text in the {source}: add text, or remove that part")
            return writer.finish(self._identity)

    def _check_identity(self, identity: dict) -> None:
        differing = sorted(name for name in self._identity if identity.get(name) != self._identity[name])
        check(
            not differing,
            f"token cache {self.folder} was made with another {' and '.join(differing)}: a cache must not be copied "
            "or edited; delete it",
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the entry's lock. The operating system releases it if the process dies."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with open(self.folder.with_name(f"{self.folder.name}.lock"), "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                self._say(f"waiting for {file.read() or 'another process'}, which makes {self.folder}", "dim")
                fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield

    def _say_damaged(self, damage: str) -> None:
        if not self._damaged:
            self._say(f"token cache {self.folder} is damaged ({damage}): tokenising again", "yellow")
        self._damaged = True

    def _say(self, message: str, style: str) -> None:
        self._console.print(message, style=style, markup=False, soft_wrap=True)

    def _progress(self, title: str) -> rich.progress.Progress:
        progress = rich.progress.Progress(
            rich.progress.SpinnerColumn(),
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.DownloadColumn(),
            rich.progress.TransferSpeedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        progress.add_task(f"tokenising the {title}", total=None)
        return progress

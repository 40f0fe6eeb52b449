"""Tokenised text on disk: made once for each pair of text and tokenizer, then memory-mapped.

    <cache>/tokens/<key>/            a finished entry, see shards.py
    <cache>/tokens/<key>.building/   one that is being made, or was interrupted and is continued by the next process
    <cache>/tokens/<key>.lock        held by the process that makes it

An entry's files are read once on every machine, to compare their checksums; later starts look only at sizes and times.
A damaged entry becomes an interrupted one: what precedes the damage is kept.
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
from llm_jax.data.encoding import encoded, pieces
from llm_jax.data.examples import Row
from llm_jax.data.sources import TextSource
from llm_jax.tokenizers.tokenizer import Tokenizer

_FORMAT = 2


@dataclasses.dataclass(frozen=True)
class TokenDocuments:
    """Documents as token ids."""

    tokens: np.ndarray | shards.ShardedTokens
    """Unsigned integers [total], to be read by slices or places: all documents in a row, with boundary tokens."""
    offsets: np.ndarray
    """int64 [documents + 1]: where each begins in `tokens`."""
    text_bytes: int
    """UTF-8 bytes of the text of all documents."""
    digest: str
    """Sixteen hex digits of the tokens' content."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def read(self, parts: np.ndarray, starts: np.ndarray, stops: np.ndarray, epoch: int) -> Row:
        """`tokens` [stops - starts, summed]: of each of the documents `parts` those from `starts` to `stops`, one
        document after the other. `epoch` changes nothing here."""
        lengths = stops - starts
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


def tokenized(source: TextSource, tokenizer: Tokenizer, bos: bool, eos: bool, cache: Path) -> TokenDocuments:
    """The documents of `source` as [bos] + ids + [eos], from the cache, or tokenised now and added to it.

    A process that is killed leaves what it has finished, and the next one continues there. Of several that need the
    same entry one makes it and the others wait. The result depends on none of this.

    Raises:
      ValueError: if the source has no text, cannot be read, or the cache cannot be written.
    """
    identity = {
        "format": _FORMAT,
        "tokenizer": tokenizer.digest,
        "vocab_size": tokenizer.vocab_size,
        "text": source.digest,
        "bos": bos,
        "eos": eos,
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    entry = _Entry(cache / "tokens" / key, identity)
    try:
        return entry.read() or entry.make(source, tokenizer)
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
        """The documents; None if the entry is not there or, which a message says once, damaged.

        Raises:
          ValueError: if it is whole but was made from another text or with another tokenizer.
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

    def make(self, source: TextSource, tokenizer: Tokenizer) -> TokenDocuments:
        """Makes the entry, or waits for the process that does."""
        with self._locked():
            # Another process may have made it in the meantime.
            found = self.read()
            if found is not None:
                return found
            if self.folder.exists():
                shutil.rmtree(self._building, ignore_errors=True)
                os.rename(self.folder, self._building)
            try:
                manifest = self._build(source, tokenizer)
            except BaseException:
                if not shards.has_finished_shards(self._building):
                    shutil.rmtree(self._building, ignore_errors=True)
                raise
            os.rename(self._building, self.folder)
            shards.remember_checksums(self.folder, manifest)
        return given(self.read(), f"{self.folder} was damaged while it was written: the disk or the memory is faulty")

    def _build(self, source: TextSource, tokenizer: Tokenizer) -> dict:
        with contextlib.closing(shards.ShardWriter(self._building, tokenizer.vocab_size)) as writer:
            done = writer.done
            if done.pieces:
                self._say(f"tokenising the {source} continues after {done.documents:,} documents", "dim")
            rest = itertools.islice(pieces(source, tokenizer), done.pieces, None)
            with self._progress(str(source)) as progress:
                progress.update(progress.task_ids[0], completed=done.text_bytes)
                for batch in encoded(rest, tokenizer, self._identity["bos"], self._identity["eos"]):
                    writer.write(batch)
                    progress.advance(progress.task_ids[0], int(batch.text_bytes.sum()))
            check(writer.tokens > 0, f"there is no text in the {source}: give it some, or leave that part out")
            return writer.finish(self._identity)

    def _check_identity(self, identity: dict) -> None:
        differing = sorted(name for name in self._identity if identity.get(name) != self._identity[name])
        check(
            not differing,
            f"token cache {self.folder} was made with another {' and '.join(differing)}: it must have been copied "
            "or edited by hand; delete it",
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the entry's lock, which the system takes back from a process that dies."""
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

"""Tokenised text on disk: made once for each pair of text and tokenizer, then memory-mapped.

    <cache>/tokens/<key>/tokens.bin    all documents one after the other, uint16 or uint32
                         offsets.npy   int64 [documents + 1], where each begins
                         meta.json     identity (digests, boundary tokens), sizes, SHA-256 of tokens.bin

The folder is written under another name and renamed when it is whole, so that neither a crash nor a second process can
leave a part of it in place.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rich.console
import rich.progress

from llm_jax.core.checks import check
from llm_jax.data.sources import Document, TextSource
from llm_jax.tokenizers.tokenizer import Tokenizer

_FORMAT = 2
_CHARACTERS_PER_BATCH = 2**20


@dataclasses.dataclass(frozen=True)
class TokenDocuments:
    """Documents as token ids."""

    tokens: np.ndarray
    """Unsigned integers [total]: all documents one after the other, with their boundary tokens."""
    offsets: np.ndarray
    """int64 [documents + 1]."""
    text_bytes: int
    """UTF-8 bytes of the text of all documents."""
    digest: str
    """Sixteen hex digits of the tokens' content."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

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

    A cache entry whose files do not have the sizes it states is made anew, with a message.

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
    if not entry.whole():
        entry.write(source, tokenizer)
    return entry.read()


class _Entry:
    """One folder of the cache."""

    def __init__(self, folder: Path, identity: dict):
        self._folder = folder
        self._identity = identity
        self._console = rich.console.Console(stderr=True)

    def whole(self) -> bool:
        """Whether the folder is there with everything it states."""
        if not self._folder.exists():
            return False
        damage = self._damage()
        if damage is not None:
            message = f"token cache {self._folder} is damaged ({damage}): tokenising again"
            self._console.print(message, style="yellow", markup=False, soft_wrap=True)
        return damage is None

    def read(self) -> TokenDocuments:
        meta = self._meta()
        tokens = np.memmap(self._folder / "tokens.bin", dtype=meta["dtype"], mode="r")
        return TokenDocuments(
            # A plain array over the same mapping: indexing a memmap object costs several times as much.
            tokens=np.asarray(tokens).view(np.ndarray),
            offsets=np.load(self._folder / "offsets.npy"),
            text_bytes=meta["text_bytes"],
            digest=meta["content"][:16],
        )

    def write(self, source: TextSource, tokenizer: Tokenizer) -> None:
        try:
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            partial = self._folder.with_name(f"{self._leftover_prefix}{os.getpid()}={uuid.uuid4().hex[:8]}")
            partial.mkdir()
            try:
                self._fill(partial, source, tokenizer)
                self._publish(partial)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            raise ValueError(
                f"token cache {self._folder} cannot be written ({error.strerror or error}): free some space, make the "
                "folder writable, or choose another cache folder"
            ) from error

    def _fill(self, folder: Path, source: TextSource, tokenizer: Tokenizer) -> None:
        dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        lengths, text_bytes, content = [0], 0, hashlib.sha256()
        with open(folder / "tokens.bin", "wb") as file, self._progress(str(source)) as progress:
            for documents in _batches(source):
                size = sum(len(document.text.encode()) for document in documents)
                for document, ids in zip(documents, self._encoded(documents, tokenizer), strict=True):
                    _check_ids(document.name, ids, tokenizer)
                    data = ids.astype(dtype).tobytes()
                    file.write(data)
                    content.update(data)
                    lengths.append(len(ids))
                text_bytes += size
                progress.advance(progress.task_ids[0], size)
            _to_disk(file)
        offsets = np.cumsum(lengths, dtype=np.int64)
        check(offsets[-1] > 0, f"there is no text in the {source}: give it some, or leave that part out")
        sizes = {"documents": len(offsets) - 1, "tokens": int(offsets[-1]), "text_bytes": text_bytes}
        meta = {"identity": self._identity, "dtype": dtype.name, **sizes, "content": content.hexdigest()}
        with open(folder / "offsets.npy", "wb") as file:
            np.save(file, offsets)
            _to_disk(file)
        with open(folder / "meta.json", "w") as file:
            json.dump(meta, file, indent=2)
            _to_disk(file)

    def _publish(self, partial: Path) -> None:
        """Renames the finished folder into place; if another process was first, its result is the same."""
        if self._folder.exists() and self._damage() is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        try:
            os.rename(partial, self._folder)
        except OSError:
            if not self._folder.exists():
                raise

    def _encoded(self, documents: list[Document], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
        before = np.array([tokenizer.bos_id] if self._identity["bos"] else [], np.int64)
        after = np.array([tokenizer.eos_id] if self._identity["eos"] else [], np.int64)
        for ids in tokenizer.encode_batch([document.text for document in documents]):
            yield np.concatenate([before, ids, after])

    def _damage(self) -> str | None:
        """What is wrong with the folder, or None.

        Raises:
          ValueError: if it is whole but was made from another text or with another tokenizer.
        """
        try:
            meta = self._meta()
            found = (self._folder / "tokens.bin").stat().st_size
            offsets = np.load(self._folder / "offsets.npy", mmap_mode="r")
            expected = meta["tokens"] * np.dtype(meta["dtype"]).itemsize
            identity, documents, tokens = meta["identity"], meta["documents"], meta["tokens"]
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            return str(error)
        if identity != self._identity:
            differing = sorted(name for name in self._identity if identity.get(name) != self._identity[name])
            raise ValueError(
                f"token cache {self._folder} was made with another {' and '.join(differing)}: it must have been copied "
                "or edited by hand; delete it"
            )
        if found != expected:
            return f"tokens.bin has {found} bytes and should have {expected}"
        if len(offsets) != documents + 1 or offsets[-1] != tokens:
            return "offsets.npy does not fit meta.json"
        return None

    def _meta(self) -> dict:
        return json.loads((self._folder / "meta.json").read_text())

    @property
    def _leftover_prefix(self) -> str:
        return f"{self._folder.name}.partial-{socket.gethostname()}="

    def _remove_leftovers(self) -> None:
        """Removes what processes of this host that were killed have left."""
        for path in self._folder.parent.glob(f"{self._leftover_prefix}*"):
            process = path.name.removeprefix(self._leftover_prefix).split("=")[0]
            if not _is_running(int(process)):
                shutil.rmtree(path, ignore_errors=True)

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


def _batches(source: TextSource) -> Iterator[list[Document]]:
    """Documents in groups large enough for the tokenizer to work on in parallel."""
    batch, characters = [], 0
    for document in source:
        batch.append(document)
        characters += len(document.text)
        if characters >= _CHARACTERS_PER_BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _check_ids(name: str, ids: np.ndarray, tokenizer: Tokenizer) -> None:
    if len(ids) and not (ids.min() >= 0 and ids.max() < tokenizer.vocab_size):
        raise ValueError(
            f"document {name}: the tokenizer gave ids from {ids.min()} to {ids.max()}, but its vocab_size is "
            f"{tokenizer.vocab_size}: the tokenizer's file is damaged, or it has no such boundary token (set bos and "
            "eos to False)"
        )


def _to_disk(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

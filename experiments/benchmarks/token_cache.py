"""The token cache: time, processor time and peak memory to make it from text, and to open it again.

Command: python experiments/benchmarks/token_cache.py [--megabytes 100] [--cache-gigabytes 10] [--publish]

The text is the source of the Python standard library, copied with a number after every blank line until it has the
size; the tokenizer is SentencePiece BPE, learnt from it. Every row is a process of its own; "imports" is the memory
that each of them takes before it begins. Time includes the first survey of the corpus. "one text file" is a single
document. "continued" begins where a process was killed. The cache that is opened holds documents of 1,024 random
tokens: at first every file is read, later none. Its files are in the page cache of the system.
"""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import tyro
from tables import machine, markdown, publish

from llm_jax.data import encoding, known_files
from llm_jax.data.cache import TokenDocuments, tokenized
from llm_jax.data.sources import (
    Document,
    JsonLinesConfig,
    ParquetConfig,
    Reader,
    StandardLibraryConfig,
    TextFilesConfig,
)
from llm_jax.tokenizers import ByteTokenizerConfig, SentencePieceTokenizerConfig, TrainSentencePieceConfig


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Sizes."""

    megabytes: int = 100
    """Of text."""
    forms: tuple[str, ...] = ("JSON lines", "JSON lines, .zst", "Parquet", "one text file", "JSON lines, continued")
    """What is tokenised."""
    cache_gigabytes: float = 10.0
    """Size of the cache that is opened; 0 for none."""
    vocab_size: int = 8192
    folder: Path | None = None
    """Where corpora and caches are made, and removed again; the system's folder for temporary files if not given."""
    publish: bool = False
    """Write the table into experiments/README.md."""
    smoke: bool = False
    """Only see that it runs: little text, no publishing."""


SMOKE = {"megabytes": 1, "forms": ("one text file",), "cache_gigabytes": 0.0, "vocab_size": 512, "publish": False}


class Drawn:
    """Random documents of 1,023 bytes each, made as they are read."""

    digest, invalid, empty = "drawn00000000000", (), 0

    def __init__(self, count: int):
        self._count = count

    def __iter__(self) -> Iterator[Document]:
        generator = np.random.default_rng(0)
        for index in range(self._count):
            yield Document(str(index), generator.integers(32, 127, 1023, np.uint8).tobytes().decode())

    def __str__(self) -> str:
        return "drawn text"


def texts(megabytes: int) -> Iterator[str]:
    """Documents of about so much text together."""
    library = [document.text for document in StandardLibraryConfig().build()]
    left, copy = megabytes * 10**6, 0
    while left > 0:
        for text in library:
            text = text.replace("\n\n", f"\n\n# {copy}\n")
            left -= len(text.encode())
            yield text
            if left <= 0:
                break
        copy += 1


def write_corpora(folder: Path, megabytes: int) -> dict[str, Reader]:
    """The same text in several forms."""
    column = []
    with open(folder / "text.jsonl", "w") as lines, open(folder / "text.txt", "w", encoding="utf-8") as whole:
        for text in texts(megabytes):
            lines.write(json.dumps({"text": text}) + "\n")
            whole.write(text)
            column.append(text)
    compressed = pyarrow.compress((folder / "text.jsonl").read_bytes(), codec="zstd", asbytes=True)
    (folder / "text.jsonl.zst").write_bytes(compressed)
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), folder / "text.parquet")
    return {
        "JSON lines": JsonLinesConfig((str(folder / "text.jsonl"),)),
        "JSON lines, .zst": JsonLinesConfig((str(folder / "text.jsonl.zst"),)),
        "Parquet": ParquetConfig((str(folder / "text.parquet"),)),
        "one text file": TextFilesConfig((str(folder / "text.txt"),)),
    }


def make(source: Reader, model: Path, cache: Path) -> TokenDocuments:
    """The whole of a source."""
    tokenizer = SentencePieceTokenizerConfig(str(model)).build(list, cache, "")
    return tokenized(source.build(), encoding.TextEncoding(tokenizer, True, True), cache)


def make_until(share: float, source: Reader, model: Path, cache: Path) -> None:
    """Dies like a process that is killed when about so much of the source's text is encoded."""
    left = share * sum(len(document.text) for document in source.build())
    original = encoding.TextEncoding.encode

    def counted(self: encoding.TextEncoding, batch: list) -> encoding.EncodedPieces:
        nonlocal left
        left -= sum(len(piece.text) for piece in batch)
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, batch)

    encoding.TextEncoding.encode = counted
    make(source, model, cache)


def open_drawn(count: int, cache: Path) -> TokenDocuments:
    """A cache of documents of 1,024 tokens, of two bytes each."""
    tokenizer = ByteTokenizerConfig().build(list, cache, "")
    return tokenized(Drawn(count), encoding.TextEncoding(tokenizer, True, False), cache)


def measured(work: Callable[..., object] | None, *arguments: object) -> tuple[float, float, float]:
    """(seconds, processor seconds, peak MiB) of `work` in a new process; the peak is that of the whole process."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_measure, args=(queue, work, arguments))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"a process ended with {process.exitcode}")
    return queue.get()


def _measure(queue: multiprocessing.SimpleQueue, work: Callable[..., object] | None, arguments: tuple) -> None:
    before, start = time.process_time(), time.perf_counter()
    if work is not None:
        work(*arguments)
    queue.put((time.perf_counter() - start, time.process_time() - before, _peak()))


def _peak() -> float:
    """MiB. The system's ru_maxrss would be at least that of the process that started this one."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("this system does not tell the peak memory of a process in /proc/self/status")


def run(arguments: Arguments, folder: Path) -> str:
    """All measurements in `folder`; returns the table."""
    os.environ[known_files.FOLDER_VARIABLE] = str(folder / "known")
    corpora = write_corpora(folder, arguments.megabytes)
    model, size = folder / "tokenizer.model", f"{arguments.megabytes:,} MB"
    trained = TrainSentencePieceConfig(arguments.vocab_size)
    model.write_bytes(trained.build(lambda: texts(arguments.megabytes), folder, "").content)
    rows = [("imports", "", *measured(None))]
    for form in arguments.forms:
        name = form.removesuffix(", continued")
        if name != form:
            killed = multiprocessing.get_context("spawn").Process(
                target=make_until, args=(0.6, corpora[name], model, folder / form)
            )
            killed.start()
            killed.join()
        rows.append((form, size, *measured(make, corpora[name], model, folder / form)))
    if arguments.cache_gigabytes:
        rows += opened(arguments.cache_gigabytes, folder)
    cells = [(name, size, f"{s:.2f}", f"{p:.2f}", f"{m:,.0f}") for name, size, s, p, m in rows]
    return markdown(("what", "size", "seconds", "processor seconds", "peak MiB"), cells)


def opened(gigabytes: float, folder: Path) -> list[tuple]:
    """Rows of a cache that is made, opened on a machine that does not know it, and opened once more."""
    count, rows = int(gigabytes * 1e9 / 2048), []
    for name in ("bytes", "opened, not known", "opened, known"):
        if name == "opened, not known":
            shutil.rmtree(folder / "known")
        # Files that were written a moment ago are not trusted yet.
        time.sleep(3)
        rows.append((name, f"{gigabytes:g} GB", *measured(open_drawn, count, folder / "drawn")))
    return rows


def main(arguments: Arguments) -> None:
    """Measures and prints the table."""
    if arguments.smoke:
        arguments = dataclasses.replace(arguments, **SMOKE)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        text = f"{machine('sentencepiece', 'pyarrow')}\n\n{run(arguments, Path(folder))}"
    print(text)
    if arguments.publish:
        publish("token_cache", text)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=Path(__file__).name + ": " + __doc__))

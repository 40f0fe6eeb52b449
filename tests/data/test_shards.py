"""The token cache under kills and damage: what comes out is what an uninterrupted build writes, byte for byte."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from llm_jax.data import encoding, known_files, shards
from llm_jax.data.cache import tokenized
from llm_jax.tokenizers import SentencePieceTokenizerConfig, TrainSentencePieceConfig
from llm_jax.tokenizers.byte import ByteTokenizer
from tests.helpers.fake_tokenizer import FakeTokenizer

REPOSITORY = Path(__file__).parents[2]
TEXTS = ["", "a", *("é" * (7 * i % 90) + f" number {i}" for i in range(60)), "long " * 900, "", "end"]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Shards of a few documents, batches of one or two, and no earlier knowledge."""
    monkeypatch.setattr(shards, "SHARD_TOKENS", 700)
    monkeypatch.setattr(encoding, "_CHARACTERS_PER_BATCH", 150)
    monkeypatch.setattr("llm_jax.tokenizers.byte._CHARACTERS_PER_PART", 300)
    monkeypatch.setenv(known_files.FOLDER_VARIABLE, str(tmp_path / "known"))


class Source:
    """Texts in memory."""

    digest, invalid, empty = "5ource0000000000", (), 0

    def __init__(self, texts=TEXTS):
        self.texts = texts

    def __iter__(self):
        return (encoding.Document(f"{i}", text) for i, text in enumerate(self.texts))

    def __str__(self):
        return "source"


def build(cache, source=None, tokenizer=None, bos=True, eos=True):
    return tokenized(source or Source(), encoding.TextEncoding(tokenizer or ByteTokenizer(), bos, eos), cache)


def files(cache):
    """Content of all files of the only entry; a lock beside it is none of its files."""
    (entry,) = (path for path in (cache / "tokens").iterdir() if path.is_dir())
    return {path.name: path.read_bytes() for path in entry.iterdir()}


def expected(bos=True, eos=True):
    return [[256] * bos + list(text.encode()) + [257] * eos for text in TEXTS]


def content(documents):
    return [documents[i].tolist() for i in range(len(documents))]


@pytest.mark.parametrize(("bos", "eos"), [(True, True), (False, False)])
def test_documents_span_shards_and_pieces(tmp_path, bos, eos):
    documents = build(tmp_path, bos=bos, eos=eos)
    names = [name for name in files(tmp_path) if name.startswith("tokens-")]
    assert len(names) > 5
    assert content(documents) == expected(bos, eos)
    stream = list(itertools.chain(*expected(bos, eos)))
    assert documents.text_bytes == sum(len(text.encode()) for text in TEXTS)
    for start, stop in ((0, len(stream)), (690, 720), (1399, 1401), (5, 5), (len(stream) - 3, len(stream) + 9)):
        assert documents.tokens[start:stop].tolist() == stream[start:stop]


def test_the_digest_is_of_the_tokens_and_not_of_how_they_are_kept(tmp_path, monkeypatch):
    found = build(tmp_path / "a")
    monkeypatch.setattr(shards, "SHARD_TOKENS", 10**6)
    monkeypatch.setattr(encoding, "_CHARACTERS_PER_BATCH", 10**6)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    assert build(tmp_path / "b").digest == found.digest
    assert len(files(tmp_path / "a")) > len(files(tmp_path / "b")) == 4
    assert build(tmp_path / "c", Source([*TEXTS[:-1], "enD"])).digest != found.digest


PROGRAM = """
import os, signal, sys
from pathlib import Path
from llm_jax.data import encoding, shards
from llm_jax.data.cache import tokenized
from llm_jax.tokenizers import byte
from tests.data.test_shards import Source
shards.SHARD_TOKENS, encoding._CHARACTERS_PER_BATCH, byte._CHARACTERS_PER_PART = 700, 150, 300
folder = Path(sys.argv[1])

def build(cache, kill_at):
    "In a process of its own, which dies at a call that changes the disk; returns whether it did."
    process = os.fork()
    if process == 0:
        calls = 0
        def watched(original):
            def call(*arguments):
                nonlocal calls
                calls += 1
                if calls == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments)
            return call
        for name in ("fsync", "replace", "rename", "unlink"):
            setattr(os, name, watched(getattr(os, name)))
        shards.ShardWriter._append = watched(shards.ShardWriter._append)
        tokenized(Source(), encoding.TextEncoding(byte.ByteTokenizer(), True, True), cache)
        os._exit(0)
    return os.waitpid(process, 0)[1] == signal.SIGKILL

assert not build(folder / "whole", -1)
point = 0
while build(folder / f"{point:03d}", point + 1):
    # Killed a second time a little later, then left alone.
    build(folder / f"{point:03d}", 1 + point % 7)
    assert not build(folder / f"{point:03d}", -1)
    point += 3
print(point)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder of caches: one built at once, the others after kills at ever later points."""
    folder = tmp_path_factory.mktemp("killed")
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "JAX_PLATFORMS": "cpu",
        known_files.FOLDER_VARIABLE: str(folder / "known"),
    }
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 60
    return folder


def test_killed_at_any_point_the_finished_cache_is_that_of_an_uninterrupted_build(killed):
    whole = files(killed / "whole")
    assert len(whole) > 8
    caches = sorted(path for path in killed.iterdir() if path.name[0].isdigit())
    for cache in caches:
        assert files(cache) == whole, cache.name
    assert len(caches) > 20


def test_finished_shards_are_not_tokenised_again(tmp_path):
    class Failing(ByteTokenizer):
        kind = ByteTokenizer.kind
        left = 25

        def encode_batch(self, texts):
            type(self).left -= 1
            if self.left < 0:
                raise ValueError("interrupted")
            return super().encode_batch(texts)

    class Counting(ByteTokenizer):
        kind = ByteTokenizer.kind
        encoded = 0

        def encode_batch(self, texts):
            type(self).encoded += sum(map(len, texts))
            return super().encode_batch(texts)

    with pytest.raises(ValueError, match="interrupted"):
        build(tmp_path, tokenizer=Failing())
    (folder,) = (path for path in (tmp_path / "tokens").iterdir() if path.is_dir())
    assert folder.name.endswith(".building")
    finished = len((folder / "journal.jsonl").read_text().splitlines())
    assert content(build(tmp_path, tokenizer=Counting())) == expected()
    left = sum(map(len, TEXTS)) - Counting.encoded
    assert finished >= 2 and left >= 200 * finished


def flip(place):
    def damage(path):
        data = bytearray(path.read_bytes())
        data[int(place * (len(data) - 1))] ^= 0x80
        path.write_bytes(data)

    return damage


DAMAGES = {
    "first byte": flip(0),
    "middle byte": flip(0.5),
    "last byte": flip(1),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0\0"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "removed": lambda path: path.unlink(),
    "another's": lambda path: path.write_bytes((path.parent / "tokens-00002.bin").read_bytes()),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["tokens-00000.bin", "tokens-00004.bin", "offsets.bin", "manifest.json"])
def test_damage_is_never_used_and_is_repaired(tmp_path, capsys, name, damage):
    digest = build(tmp_path).digest
    whole = files(tmp_path)
    (folder,) = (path for path in (tmp_path / "tokens").iterdir() if path.is_dir())
    before = (folder / name).stat()
    DAMAGES[damage](folder / name)
    if (folder / name).exists():
        os.utime(folder / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    documents = build(tmp_path)
    assert content(documents) == expected() and documents.digest == digest
    assert "is damaged" in capsys.readouterr().err
    assert files(tmp_path) == whole


@pytest.mark.parametrize(("field", "value"), [("dtype", "float16"), ("dtype", "uint32"), ("text_bytes", 1)])
def test_a_manifest_that_was_edited_is_not_used(tmp_path, field, value):
    build(tmp_path)
    (path,) = (tmp_path / "tokens").glob("*/manifest.json")
    manifest = shards.read_manifest(path.parent)
    path.write_text(json.dumps(manifest | {field: value, "checksum": 0}))
    assert content(build(tmp_path)) == expected()
    # Even with a checksum of its own an impossible type is refused.
    if field == "dtype":
        edited = manifest | {field: value}
        path.write_text(json.dumps(edited | {"checksum": shards._json_checksum(edited)}))
        assert build(tmp_path).tokens.dtype == np.uint16


def test_files_are_read_once_and_again_on_request(tmp_path, monkeypatch):
    checked = []
    original = known_files.checksum
    monkeypatch.setattr(known_files, "checksum", lambda path: checked.append(path.name) or original(path))
    build(tmp_path)
    # A file that was written a moment ago is read once more.
    time.sleep(0.1)
    build(tmp_path)
    checked.clear()
    build(tmp_path)
    assert checked == []
    with known_files.distrusted():
        build(tmp_path)
    names = {name for name in files(tmp_path) if name.endswith(".bin")}
    assert set(checked) == names
    # On another machine, which knows nothing.
    monkeypatch.setenv(known_files.FOLDER_VARIABLE, str(tmp_path / "elsewhere"))
    checked.clear()
    build(tmp_path)
    assert set(checked) == names


def test_a_repair_leaves_a_running_process_its_data(tmp_path):
    documents = build(tmp_path)
    before = content(documents)
    (folder,) = (path for path in (tmp_path / "tokens").iterdir() if path.is_dir())
    (folder / "tokens-00001.bin").unlink()
    build(tmp_path)
    assert content(documents) == before


def test_parts_of_documents_give_the_ids_of_whole_documents(tmp_path):
    text = Path(encoding.__file__).read_text() * 3
    trained = TrainSentencePieceConfig(400).build(lambda: [text], tmp_path, "key")
    model = tmp_path / "tokenizer.model"
    model.write_bytes(trained.content)
    tokenizer = SentencePieceTokenizerConfig(str(model)).build(list, tmp_path, "")
    documents = build(tmp_path, Source([text, "short", text[::-1]]), tokenizer)
    assert len(list(encoding.TextEncoding(tokenizer, True, True).pieces(Source([text])))) > 1
    for i, whole in enumerate((text, "short", text[::-1])):
        assert documents[i].tolist() == [tokenizer.bos_id, *tokenizer.encode(whole), tokenizer.eos_id]


def test_one_document_is_tokenised_in_several_threads(tmp_path, monkeypatch):
    names = set()

    class Watching(FakeTokenizer):
        def parts(self, text):
            return (text[i : i + 100] for i in range(0, len(text), 100))

        def encode_batch(self, texts):
            names.add(threading.current_thread().name)
            time.sleep(0.01)
            return super().encode_batch(texts)

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    documents = build(tmp_path, Source(["one document " * 500]), Watching())
    assert documents[0].tolist() == [257, *b"one document " * 500, 258]
    assert len(names) == 3

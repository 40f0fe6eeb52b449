import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from llm_jax.data.cache import tokenized
from llm_jax.data.sources import JsonLinesConfig, TextFilesConfig
from tests.helpers.fake_tokenizer import FakeTokenizer

REPOSITORY = Path(__file__).parents[2]
TEXTS = ["one", "zwei é", "", "vier\n" * 10]


class CountingTokenizer(FakeTokenizer):
    calls = 0

    def encode_batch(self, texts):
        self.calls += 1
        return super().encode_batch(texts)


@pytest.fixture
def source(tmp_path):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "corpus.jsonl").write_text(lines)
    return JsonLinesConfig((str(tmp_path / "corpus.jsonl"),), empty="keep").build()


def entries(cache):
    return sorted((cache / "tokens").iterdir())


def content(documents):
    return [documents[i].tolist() for i in range(len(documents))]


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_documents_come_back_between_their_boundary_tokens(source, tmp_path, bos, eos):
    documents = tokenized(source, FakeTokenizer(), bos, eos, tmp_path / "cache")
    assert content(documents) == [[257] * bos + list(text.encode()) + [258] * eos for text in TEXTS]
    assert documents.lengths.tolist() == [len(ids) for ids in content(documents)]
    assert documents.total == sum(documents.lengths)
    assert documents.text_bytes == sum(len(text.encode()) for text in TEXTS)
    assert documents.tokens.dtype == np.uint16


def test_a_large_vocabulary_is_kept_in_32_bits(source, tmp_path):
    class Large(FakeTokenizer):
        vocab_size = 70_000
        bos_id = 69_999

    documents = tokenized(source, Large(), True, True, tmp_path / "cache")
    assert documents.tokens.dtype == np.uint32
    assert documents[0].tolist() == [69_999, *b"one", 258]


def test_tokenising_happens_once_per_text_tokenizer_and_boundaries(source, tmp_path):
    cache = tmp_path / "cache"
    tokenizer = CountingTokenizer()
    first = tokenized(source, tokenizer, True, True, cache)
    assert tokenizer.calls == 1
    again = tokenized(source, tokenizer, True, True, cache)
    assert tokenizer.calls == 1
    assert content(first) == content(again) and first.digest == again.digest
    other = CountingTokenizer(digest="another000000000")
    for used, bos in ((tokenizer, False), (other, True)):
        before = used.calls
        tokenized(source, used, bos, True, cache)
        assert used.calls == before + 1
    changed = TextFilesConfig((str(tmp_path / "corpus.jsonl"),)).build()
    assert changed.digest != source.digest
    tokenized(changed, tokenizer, True, True, cache)
    assert len(entries(cache)) == 4


def cut_tokens(folder):
    path = folder / "tokens.bin"
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
    "damage",
    [
        cut_tokens,
        lambda folder: (folder / "tokens.bin").unlink(),
        lambda folder: (folder / "offsets.npy").write_bytes(b""),
        lambda folder: np.save(folder / "offsets.npy", np.arange(3)),
        lambda folder: (folder / "meta.json").write_text('{"documents": '),
        lambda folder: (folder / "meta.json").unlink(),
        lambda folder: (folder / "meta.json").write_text("[]"),
    ],
)
def test_a_damaged_entry_is_made_again_and_said_so(source, tmp_path, capsys, damage):
    cache = tmp_path / "cache"
    tokenizer = CountingTokenizer()
    expected = content(tokenized(source, tokenizer, True, True, cache))
    (folder,) = entries(cache)
    damage(folder)
    assert content(tokenized(source, tokenizer, True, True, cache)) == expected
    assert tokenizer.calls == 2
    assert "damaged" in capsys.readouterr().err
    assert entries(cache) == [folder]
    tokenized(source, tokenizer, True, True, cache)
    assert tokenizer.calls == 2 and "damaged" not in capsys.readouterr().err


def test_an_entry_of_another_tokenizer_in_its_place_is_refused(source, tmp_path):
    cache = tmp_path / "cache"
    tokenized(source, FakeTokenizer(), True, True, cache)
    (mine,) = entries(cache)
    tokenized(source, FakeTokenizer("another000000000"), True, True, cache)
    (other,) = set(entries(cache)) - {mine}
    other.rename(tmp_path / "aside")
    mine.rename(other)
    with pytest.raises(ValueError, match="made with another tokenizer.*delete it"):
        tokenized(source, FakeTokenizer("another000000000"), True, True, cache)


def test_ids_outside_the_vocabulary_are_refused_and_nothing_is_kept(source, tmp_path):
    class Small(FakeTokenizer):
        vocab_size = 200

    with pytest.raises(ValueError, match=r"corpus\.jsonl:1: the tokenizer gave ids from 101 to 258.*vocab_size is 200"):
        tokenized(source, Small(), True, True, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_text_without_tokens_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    source = TextFilesConfig((str(tmp_path / "a.txt"),), invalid_utf8="skip").build()
    with pytest.raises(ValueError, match="there is no text in the text files .*a.txt"):
        tokenized(source, FakeTokenizer(), True, True, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_an_unwritable_cache_is_named(source, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match=r"token cache .*cache/tokens/\w+ cannot be written"):
        tokenized(source, FakeTokenizer(), True, True, tmp_path / "cache")


def test_a_full_disk_leaves_no_part_behind(source, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="cannot be written .No space left on device.: free some space"):
        tokenized(source, FakeTokenizer(), True, True, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_two_that_race_both_get_the_whole(source, tmp_path):
    meeting = threading.Barrier(2)

    class Meeting(FakeTokenizer):
        def encode_batch(self, texts):
            # Neither has an entry yet: both are going to publish theirs.
            meeting.wait(timeout=10)
            return super().encode_batch(texts)

    found = []
    threads = [
        threading.Thread(target=lambda: found.append(tokenized(source, Meeting(), True, True, tmp_path / "cache")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and content(found[0]) == content(found[1])
    assert len(entries(tmp_path / "cache")) == 1


def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(source, tmp_path):
    program = f"""
import sys, time
from pathlib import Path
from llm_jax.data.cache import tokenized
from llm_jax.data.sources import JsonLinesConfig
from tests.helpers.fake_tokenizer import FakeTokenizer
class Hanging(FakeTokenizer):
    def encode_batch(self, texts):
        yield from super().encode_batch(texts)[:2]
        Path({str(tmp_path / "reached")!r}).touch()
        time.sleep(60)
source = JsonLinesConfig(({str(tmp_path / "corpus.jsonl")!r},)).build()
tokenized(source, Hanging(), True, True, Path({str(tmp_path)!r}))
"""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE)
    while not (tmp_path / "reached").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (partial,) = entries(tmp_path)
    assert ".partial-" in partial.name
    documents = tokenized(source, FakeTokenizer(), True, True, tmp_path)
    assert len(documents) == len(TEXTS)
    (whole,) = entries(tmp_path)
    assert whole.name == partial.name.split(".")[0]

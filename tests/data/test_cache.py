import json
import os
import threading

import numpy as np
import pytest

from llm_jax.data.cache import tokenized
from llm_jax.data.encoding import TextEncoding
from llm_jax.data.sources import JsonLinesConfig, TextFilesConfig
from tests.helpers.fake_tokenizer import FakeTokenizer

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
    return sorted(path for path in (cache / "tokens").iterdir() if path.is_dir())


def content(documents):
    return [documents[i].tolist() for i in range(len(documents))]


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_documents_come_back_between_their_boundary_tokens(source, tmp_path, bos, eos):
    documents = tokenized(source, TextEncoding(FakeTokenizer(), bos, eos), tmp_path / "cache")
    assert content(documents) == [[257] * bos + list(text.encode()) + [258] * eos for text in TEXTS]
    assert documents.lengths.tolist() == [len(ids) for ids in content(documents)]
    assert documents.total == sum(documents.lengths)
    assert documents.text_bytes == sum(len(text.encode()) for text in TEXTS)
    assert documents.tokens.dtype == np.uint16


def test_a_large_vocabulary_is_kept_in_32_bits(source, tmp_path):
    class Large(FakeTokenizer):
        vocab_size = 70_000
        bos_id = 69_999

    documents = tokenized(source, TextEncoding(Large(), True, True), tmp_path / "cache")
    assert documents.tokens.dtype == np.uint32
    assert documents[0].tolist() == [69_999, *b"one", 258]


def test_tokenising_happens_once_per_text_tokenizer_and_boundaries(source, tmp_path):
    cache = tmp_path / "cache"
    tokenizer = CountingTokenizer()
    first = tokenized(source, TextEncoding(tokenizer, True, True), cache)
    assert tokenizer.calls == 1
    again = tokenized(source, TextEncoding(tokenizer, True, True), cache)
    assert tokenizer.calls == 1
    assert content(first) == content(again) and first.digest == again.digest
    other = CountingTokenizer(digest="another000000000")
    for used, bos in ((tokenizer, False), (other, True)):
        before = used.calls
        tokenized(source, TextEncoding(used, bos, True), cache)
        assert used.calls == before + 1
    changed = TextFilesConfig((str(tmp_path / "corpus.jsonl"),)).build()
    assert changed.digest != source.digest
    tokenized(changed, TextEncoding(tokenizer, True, True), cache)
    assert len(entries(cache)) == 4


def cut_tokens(folder):
    path = folder / "tokens-00000.bin"
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
    "damage",
    [
        cut_tokens,
        lambda folder: (folder / "tokens-00000.bin").unlink(),
        lambda folder: (folder / "offsets.bin").write_bytes(b""),
        lambda folder: np.arange(3).tofile(folder / "offsets.bin"),
        lambda folder: (folder / "manifest.json").write_text('{"documents": '),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("[]"),
    ],
)
def test_a_damaged_entry_is_made_again_and_said_so(source, tmp_path, capsys, damage):
    cache = tmp_path / "cache"
    tokenizer = CountingTokenizer()
    expected = content(tokenized(source, TextEncoding(tokenizer, True, True), cache))
    (folder,) = entries(cache)
    damage(folder)
    assert content(tokenized(source, TextEncoding(tokenizer, True, True), cache)) == expected
    # What precedes the damage is kept, which here may be all.
    calls = tokenizer.calls
    assert "damaged" in capsys.readouterr().err
    assert entries(cache) == [folder]
    tokenized(source, TextEncoding(tokenizer, True, True), cache)
    assert tokenizer.calls == calls and "damaged" not in capsys.readouterr().err


def test_an_entry_of_another_tokenizer_in_its_place_is_refused(source, tmp_path):
    cache = tmp_path / "cache"
    tokenized(source, TextEncoding(FakeTokenizer(), True, True), cache)
    (mine,) = entries(cache)
    tokenized(source, TextEncoding(FakeTokenizer("another000000000"), True, True), cache)
    (other,) = set(entries(cache)) - {mine}
    other.rename(tmp_path / "aside")
    mine.rename(other)
    with pytest.raises(ValueError, match="made with another tokenizer.*delete it"):
        tokenized(source, TextEncoding(FakeTokenizer("another000000000"), True, True), cache)


def test_ids_outside_the_vocabulary_are_refused_and_nothing_is_kept(source, tmp_path):
    class Small(FakeTokenizer):
        vocab_size = 200

    with pytest.raises(
        ValueError, match=r"corpus\.jsonl:1: the tokenizer returned ids from 101 to 258.*vocab_size is 200"
    ):
        tokenized(source, TextEncoding(Small(), True, True), tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_text_without_tokens_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    source = TextFilesConfig((str(tmp_path / "a.txt"),), invalid_utf8="skip").build()
    with pytest.raises(ValueError, match="there is no text in the text files .*a.txt"):
        tokenized(source, TextEncoding(FakeTokenizer(), True, True), tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_an_unwritable_cache_is_named(source, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match=r"token cache .*cache/tokens/\w+ cannot be written"):
        tokenized(source, TextEncoding(FakeTokenizer(), True, True), tmp_path / "cache")


def test_a_full_disk_leaves_no_part_behind(source, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="cannot be written .No space left on device.: free some space"):
        tokenized(source, TextEncoding(FakeTokenizer(), True, True), tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_of_two_that_race_one_tokenises_and_both_get_the_whole(source, tmp_path):
    meeting = threading.Barrier(2)
    tokenizer = CountingTokenizer()
    found = []

    def run():
        meeting.wait(timeout=10)
        found.append(tokenized(source, TextEncoding(tokenizer, True, True), tmp_path / "cache"))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and content(found[0]) == content(found[1])
    assert tokenizer.calls == 1 and len(entries(tmp_path / "cache")) == 1

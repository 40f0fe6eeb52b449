import json

import numpy as np
import pytest

from llm_jax.data.corpus import CorpusConfig
from llm_jax.data.duplicates import Distinct, census, fingerprints
from llm_jax.data.mixture import MixtureConfig, WeightedSource
from llm_jax.data.pipeline import DataConfig
from llm_jax.data.row_source import RowContext
from llm_jax.data.sources import JsonLinesConfig
from llm_jax.data.splits import ContentSplit, HashSplit, RangeSplit, SeparateSources
from tests.helpers.fake_tokenizer import FakeTokenizer

PARTS = ("train", "validation", "test")


@pytest.fixture
def lines(tmp_path):
    """lines(name, texts) -> a source of these texts."""

    def write(name, texts):
        (tmp_path / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return JsonLinesConfig((str(tmp_path / name),))

    return write


@pytest.fixture
def repeated(lines):
    """33 texts, 20 times each, as a web crawl repeats its pages; and two empty ones."""
    return lines("crawl.jsonl", [f"page {i % 33}" for i in range(660)] + ["", ""])


def card(tmp_path, source, tokenizer=None):
    config = DataConfig(source, sequence_length=1, batch_size=1)
    return config.build(tokenizer or FakeTokenizer(), tmp_path / "cache", seed=0).card()


def shared_with_training(config):
    """Documents of each held-out part whose text is a training document's."""
    train = {document.text for document in config.text("train")}
    held_out = [part for part in config.split.parts() if part != "train"]
    return {part: sum(document.text in train for document in config.text(part)) for part in held_out}


@pytest.mark.parametrize("split", [HashSplit(0.3, 0.2), ContentSplit(0.3, 0.2), RangeSplit(0.3, 0.2)])
def test_the_card_tells_which_held_out_documents_are_training_documents(tmp_path, repeated, split):
    config = CorpusConfig(repeated, split)
    found = card(tmp_path, config)
    shared = shared_with_training(config)
    assert {part: found["documents"][part]["in_train"] for part in shared} == shared
    assert all(shared.values()) == (not isinstance(split, ContentSplit))
    for part in PARTS:
        texts = [document.text for document in config.text(part)]
        counts = found["documents"][part]
        assert (counts["documents"], counts["duplicates"]) == (len(texts), len(texts) - len(set(texts)))
    assert found["empty_texts"] == 2


def test_no_split_shares_a_text_by_default(repeated):
    assert shared_with_training(CorpusConfig(repeated)) == {"validation": 0, "test": 0}


@pytest.mark.parametrize("split", [HashSplit(0.3, 0.2), ContentSplit(0.3, 0.2), RangeSplit(0.3, 0.2)])
def test_without_duplicates_every_text_is_in_one_document(tmp_path, repeated, split):
    config = CorpusConfig(repeated, split, duplicates="skip")
    texts = [document.text for part in PARTS for document in config.text(part)]
    assert len(texts) == len(set(texts))
    found = card(tmp_path, config)
    counts = found["documents"]
    assert all(counts[part]["duplicates"] == 0 and counts[part].get("in_train", 0) == 0 for part in PARTS)
    # A split by range cuts documents at its borders.
    assert sum(counts[part]["documents"] for part in PARTS) == 33 + 2 * isinstance(split, RangeSplit)
    assert found["duplicates_left_out"] == 660 - 33


def test_separate_sources_are_compared_and_held_out_texts_keep_what_training_loses(tmp_path, lines):
    train, held_out = lines("train.jsonl", "abcab"), lines("held.jsonl", "bxbd")
    split = SeparateSources(validation=held_out, test=lines("test.jsonl", "dc"))
    counts = card(tmp_path, CorpusConfig(train, split))["documents"]
    assert counts == {
        "train": {"documents": 5, "duplicates": 2},
        "validation": {"documents": 4, "duplicates": 1, "in_train": 2},
        "test": {"documents": 2, "duplicates": 0, "in_train": 1, "in_validation": 1},
    }
    distinct = CorpusConfig(train, split, duplicates="skip")
    assert ["".join(d.text for d in distinct.text(part)) for part in PARTS] == ["a", "bx", "dc"]
    assert card(tmp_path, distinct)["duplicates_left_out"] == 6


def test_sources_of_a_mixture_are_compared_with_one_another(tmp_path, lines):
    one = CorpusConfig(lines("a.jsonl", "aabc"), SeparateSources(lines("va.jsonl", "cx")))
    two = CorpusConfig(lines("b.jsonl", "bcd"), SeparateSources(lines("vb.jsonl", "axd")), bos=False)
    unused = CorpusConfig(lines("c.jsonl", "x"), SeparateSources(lines("vc.jsonl", "y")))
    mixture = MixtureConfig(
        (WeightedSource("one", one), WeightedSource("two", two), WeightedSource("unused", unused, weight=0.0))
    )
    assert card(tmp_path, mixture)["documents"] == {
        "train/one": {"documents": 4, "duplicates": 1},
        "train/two": {"documents": 3, "duplicates": 0, "in_train": 2},
        "validation/one": {"documents": 2, "duplicates": 0, "in_train": 1},
        "validation/two": {"documents": 3, "duplicates": 0, "in_train": 2, "in_validation": 1},
        "validation/unused": {"documents": 1, "duplicates": 0, "in_train": 0, "in_validation": 0},
    }


def test_counts_are_kept_and_had_again_where_their_file_is_damaged(tmp_path, repeated, monkeypatch):
    config = CorpusConfig(repeated)
    before = card(tmp_path, config)
    (file,) = (tmp_path / "cache" / "census").iterdir()
    file.write_text(file.read_text()[:20])
    assert card(tmp_path, config) == before
    monkeypatch.setattr("llm_jax.data.duplicates.census", None)
    assert card(tmp_path, config) == before


def test_fingerprints_are_of_the_text_without_its_boundaries(tmp_path, lines):
    def found(texts, **settings):
        corpus = CorpusConfig(lines("x.jsonl", texts), SeparateSources(), **settings)
        (documents,) = corpus.build(RowContext(FakeTokenizer(), tmp_path, 1, 1, seed=0)).document_sets().values()
        return fingerprints(documents).tolist()

    first = found(["one", "two", "one"])
    assert first[0] == first[2] != first[1]
    assert first == found(["one", "two", "one"], bos=False) == found(["one", "two", "one"], bos=False, eos=False)


def test_fingerprints_that_share_a_half_are_not_equal():
    digests = np.array([(1, 2), (1, 3), (2, 2), (1, 2)], [("high", "<u8"), ("low", "<u8")])
    assert census({"train": digests})["train"] == {"documents": 4, "duplicates": 1}
    assert census({"train": digests[:2], "test": digests[2:]})["test"]["in_train"] == 1
    assert census({"train": digests[:0], "test": digests[2:]})["test"]["in_train"] == 0


def test_distinct_documents_are_the_first_of_each_text(lines):
    source = lines("a.jsonl", "abacab").build()
    assert [d.name for d in Distinct(source)] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:4"]
    assert Distinct(source).digest != source.digest and Distinct(source).left_out == 3


def test_another_word_for_duplicates_is_refused(lines):
    with pytest.raises(ValueError, match="duplicates is 'drop'"):
        CorpusConfig(lines("a.jsonl", "ab"), duplicates="drop")

import json

import pytest

from llm_jax.core import config_text
from llm_jax.data.corpus import CorpusConfig
from llm_jax.data.packing import PackedConfig, RandomWindowsConfig
from llm_jax.data.row_source import RowContext
from llm_jax.data.sources import TextFilesConfig
from llm_jax.data.splits import ContentSplit, HashSplit, Limited, RangeSplit
from tests.helpers.fake_tokenizer import FakeTokenizer


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "corpus").mkdir()
    for i in range(60):
        (tmp_path / "corpus" / f"{i}.txt").write_text(f"document {i}: " + "é" * (i % 9))
    return tmp_path


def corpus(folder, **settings):
    settings = {"split": HashSplit(0.2, 0.1), **settings}
    return CorpusConfig(TextFilesConfig((str(folder / "corpus"),)), **settings)


def built(folder, sequence_length=16, batch_size=2, tokenizer=None, **settings):
    context = RowContext(tokenizer or FakeTokenizer(), folder / "cache", sequence_length, batch_size, seed=0)
    return corpus(folder, **settings).build(context)


def targets(rows):
    """Ids that are predicted within their own segment."""
    found = []
    for i in range(rows.count):
        row = rows.rows[i]
        same = (row["segment_ids"][1:] == row["segment_ids"][:-1]) & (row["segment_ids"][1:] > 0)
        found += row["tokens"][1:][same].tolist()
    return found


@pytest.mark.parametrize("max_bytes", [None, 100, 17])
def test_the_targets_of_an_evaluation_set_are_exactly_its_text_and_ends(folder, max_bytes):
    found = built(folder).evaluation("validation", max_bytes)[""]
    documents = list(corpus(folder).text("validation"))
    ids = targets(found)
    text_ids = [i for i in ids if i < 256]
    assert len(text_ids) == found.text_bytes
    ends = ids.count(FakeTokenizer.eos_id)
    assert len(ids) == len(text_ids) + ends
    everything = sum(len(document.text.encode()) for document in documents)
    if max_bytes is None:
        assert found.text_bytes == everything and ends == len(documents)
    else:
        assert 0 < found.text_bytes <= max_bytes < everything and 0 < ends < len(documents)


def test_without_boundary_tokens_windows_see_one_stream(folder):
    source = built(folder, packing=RandomWindowsConfig(), split=RangeSplit(0.3), bos=False, eos=False)
    text = "".join(d.text for d in corpus(folder, split=RangeSplit(0.3)).text("train")).encode()
    for i in range(20):
        row = source.train()[i]
        assert bytes(row["tokens"].tolist()) in text
        assert (row["segment_ids"] == 1).all()
    found = source.evaluation("validation", None)[""]
    assert len(targets(found)) == found.text_bytes


@pytest.mark.parametrize("max_bytes", [None, 100])
@pytest.mark.parametrize("sequence_length", [4, 16, 1000])
@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("packing", [PackedConfig(), PackedConfig(isolate=False), RandomWindowsConfig()])
def test_without_bos_only_predicted_bytes_count(folder, packing, eos, sequence_length, max_bytes):
    source = built(folder, sequence_length=sequence_length, packing=packing, bos=False, eos=eos)
    found = source.evaluation("validation", max_bytes)[""]
    # Every target below 256 is one byte of text.
    assert found.text_bytes == sum(i < 256 for i in targets(found))
    part = corpus(folder).text("validation")
    documents = list(part if max_bytes is None else Limited(part, max_bytes))
    everything = sum(len(document.text.encode()) for document in documents)
    isolated = packing == PackedConfig()
    assert found.text_bytes == everything - (len(documents) if isolated else 1)


def test_training_rows_hold_training_documents_only(folder):
    source = built(folder, split=HashSplit(0.5, 0.0), packing=PackedConfig(shuffle=False))
    text = "".join(d.text for d in corpus(folder, split=HashSplit(0.5, 0.0)).text("train")).encode()
    tokens = [i for row in range(10) for i in source.train()[row]["tokens"][:-1].tolist() if i < 256]
    assert text.startswith(bytes(tokens))


def test_a_corpus_smaller_than_one_batch_says_what_it_has_and_needs(folder):
    total = sum(len(d.text.encode()) + 2 for d in corpus(folder).text("train"))
    documents = sum(1 for _ in corpus(folder).text("train"))
    built(folder, sequence_length=total - 1, batch_size=1).train()
    with pytest.raises(
        ValueError,
        match=rf"train part .* has {total} tokens in {documents} documents: one batch requires .* = {total + 1}",
    ):
        built(folder, sequence_length=total, batch_size=1).train()


def test_an_empty_part_is_named(folder):
    with pytest.raises(ValueError, match="no text in the test part .* of text files"):
        built(folder, split=HashSplit(0.1, 1e-9)).evaluation("test", None)


def test_text_without_a_tokenizer_is_refused(folder):
    with pytest.raises(ValueError, match="needs a tokenizer"):
        corpus(folder).build(RowContext(None, folder, 16, 2, seed=0))


def test_the_manifest_follows_text_and_tokenizer(folder):
    def manifest(**settings):
        return built(folder, **settings).manifest()

    before = manifest()
    assert json.loads(json.dumps(before)) == before
    assert set(before) == {"train", "validation", "test"}
    documents = list(corpus(folder).text("train"))
    assert before["train"]["documents"] == len(documents)
    assert before["train"]["text_bytes"] == sum(len(document.text.encode()) for document in documents)
    assert before["train"]["tokens"] == before["train"]["text_bytes"] + 2 * len(documents)
    assert before["train"]["invalid_utf8"] == 0
    assert manifest() == before
    assert manifest(eos=False)["train"]["tokens_digest"] != before["train"]["tokens_digest"]
    (folder / "corpus" / "0.txt").write_text("changed")
    after = manifest()
    assert all(after[part]["text_digest"] != before[part]["text_digest"] for part in before)


def test_the_config_survives_its_own_text(folder):
    config = corpus(folder, packing=RandomWindowsConfig(), split=RangeSplit())
    assert config_text.parse(config_text.to_text(config)) == config


def test_a_split_is_by_content_unless_a_config_names_another():
    assert CorpusConfig(TextFilesConfig(("a",))).split == ContentSplit()
    # As runs wrote it when the default was a split by name, and no field `duplicates` was there.
    text = config_text.to_text(CorpusConfig(TextFilesConfig(("a",)), HashSplit()))
    before = "\n".join(line for line in text.splitlines() if not line.startswith("duplicates"))
    assert config_text.parse(before) == CorpusConfig(TextFilesConfig(("a",)), HashSplit(), duplicates="keep")

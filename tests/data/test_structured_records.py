"""Records become rows: each once in an epoch, whole, in an order that depends on (seed, epoch) alone."""

import collections
import json

import numpy as np
import pytest

from llm_jax.data import DataConfig, HashSplit, JsonLinesConfig, MarkovConfig, TextFilesConfig
from llm_jax.data.corpus import CorpusConfig
from llm_jax.data.structured_records import RecordsConfig
from llm_jax.models.families.t5 import t5
from llm_jax.objectives import CausalLMConfig, FillInTheMiddleConfig
from llm_jax.objectives.sequence_to_sequence import SequenceToSequenceConfig
from tests.helpers.fake_tokenizer import FakeTokenizer

MODEL = t5(1, 2, 8, hidden=16, vocab_size=300, max_length=64)
OBJECTIVE = SequenceToSequenceConfig(source="en", target="de", source_length=40)
LENGTH = 32


def pairs(count=80):
    draw = np.random.default_rng(0)
    return [
        {"en": f"s{i} " + "x" * draw.integers(0, 20), "de": f"t{i} " + "y" * draw.integers(0, 15)} for i in range(count)
    ]


def write(folder, records):
    file = folder / "records.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return JsonLinesConfig((str(file),), field=None)


def dataset(folder, records=None, tokenizer=None, objective=OBJECTIVE, seed=0, batch_size=4, **settings):
    source = write(folder, pairs() if records is None else records)
    config = DataConfig(RecordsConfig(source, **({"split": HashSplit(0.2, 0.0)} | settings)), LENGTH, batch_size)
    tokenizer = tokenizer or FakeTokenizer()
    return config.build(tokenizer, folder / "cache", seed, objective.examples(MODEL, tokenizer, LENGTH))


def found(row):
    """The pairs of texts of a row."""
    texts = []
    for number in range(1, row["target_segment_ids"].max() + 1):
        pair = []
        for prefix in ("encoder_", "target_"):
            (here,) = np.nonzero(row[prefix + "segment_ids"] == number)
            np.testing.assert_array_equal(here, np.arange(here[0], here[-1] + 1))
            np.testing.assert_array_equal(row[prefix + "positions"][here], np.arange(len(here)))
            tokens = row[prefix + "tokens"][here]
            assert tokens[-1] == FakeTokenizer.eos_id
            pair.append(bytes(tokens[:-1].tolist()).decode())
        texts.append(tuple(pair))
    for prefix in ("encoder_", "target_"):
        padding = row[prefix + "segment_ids"] == 0
        assert not row[prefix + "tokens"][padding].any() and (row[prefix + "segment_ids"].max() == len(texts))
    return texts


def epoch(made, number=0):
    rows = made._train
    return [rows[index] for index in range(number * rows.rows_per_epoch, (number + 1) * rows.rows_per_epoch)]


@pytest.mark.parametrize("pack", [True, False])
def test_an_epoch_has_every_record_once_and_whole(tmp_path, pack):
    made = dataset(tmp_path, pack=pack)
    held_out = made.evaluation("validation")[0]
    rows = epoch(made)
    texts = collections.Counter(pair for row in rows for pair in found(row))
    test = [row for batch in held_out.batches for row in unstacked(batch)]
    texts += collections.Counter(pair for row in test for pair in found(row))
    assert texts == collections.Counter((pair["en"], pair["de"]) for pair in pairs())
    counts = [len(found(row)) for row in rows]
    assert (max(counts) > 1 and len(rows) < 50) if pack else set(counts) == {1}


def unstacked(batch):
    return [{name: array[index] for name, array in batch.items()} for index in range(len(batch["target_tokens"]))]


def test_a_row_ends_where_the_next_record_does_not_fit(tmp_path):
    rows = epoch(dataset(tmp_path, shuffle=False))
    segments = [[row[prefix + "segment_ids"] for prefix in ("encoder_", "target_")] for row in rows]
    for here, there in zip(segments, segments[1:], strict=False):
        together = [
            np.count_nonzero(one) + np.count_nonzero(other == 1) for one, other in zip(here, there, strict=True)
        ]
        assert together[0] > 40 or together[1] > 32


def test_epochs_have_the_same_rows_in_other_orders(tmp_path):
    made = dataset(tmp_path)
    first, second = ([sorted(found(row)) for row in epoch(made, number)] for number in (0, 1))
    assert first != second and sorted(first) == sorted(second)
    again = dataset(tmp_path)
    assert [sorted(found(row)) for row in epoch(again, 1)] == second
    other = dataset(tmp_path, seed=1)
    assert sorted(sorted(found(row)) for row in epoch(other)) != sorted(first)


def test_processes_read_their_share_of_the_same_batches(tmp_path):
    made = dataset(tmp_path)
    whole = [next(made.train_iterator(step)) for step in (0, 7)]
    shares = [[next(made.train_iterator(step, host, 2)) for host in (0, 1)] for step in (0, 7)]
    for batch, parts in zip(whole, shares, strict=True):
        for name, array in batch.items():
            np.testing.assert_array_equal(array, np.concatenate([part[name] for part in parts]))


LONG = {"en": "a" * 50, "de": "b"}


def test_a_record_that_is_too_long_is_an_error_or_counted(tmp_path):
    records = [*pairs(), LONG, {"en": "c", "de": "d" * 31}]  # the last one fits with its eos
    none = HashSplit(0.0, 0.0)
    with pytest.raises(
        ValueError, match="1 of 82 records do not fit .* has 51 and 2 tokens and a row 40 and 32: .*too_long"
    ):
        dataset(tmp_path, records, split=none)
    skipped = dataset(tmp_path, records, split=none, too_long="skip")
    assert (
        skipped.manifest()["source"]["train"] | {"records": 82, "skipped": 1} == skipped.manifest()["source"]["train"]
    )
    assert ("a" * 50, "b") not in {pair for row in epoch(skipped) for pair in found(row)}
    cut = dataset(tmp_path, records, split=none, too_long="truncate")
    assert cut.manifest()["source"]["train"]["truncated"] == 1
    assert {("a" * 39, "b"), ("c", "d" * 31)} <= {pair for row in epoch(cut) for pair in found(row)}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"en": "a"}, r"there is no field 'de'; the fields there are \['en'\]"),
        ({"en": "a", "de": ""}, "field 'de' is empty"),
        ({"en": "  ", "de": "b"}, "field 'en' is empty"),
        ({"en": 3, "de": "b"}, "field 'en' holds a int, not text"),
    ],
)
def test_a_record_without_an_example_is_an_error_or_counted(tmp_path, record, reason):
    records = [*pairs(), record]
    with pytest.raises(ValueError, match=rf"record records.jsonl:81: {reason}.*set data.source.invalid to 'skip'"):
        dataset(tmp_path, records, split=HashSplit(0.0, 0.0))
    made = dataset(tmp_path, records, split=HashSplit(0.0, 0.0), invalid="skip")
    assert made.manifest()["source"]["train"]["invalid"] == 1
    assert sum(len(found(row)) for row in epoch(made)) == 80


class CountingTokenizer(FakeTokenizer):
    calls = 0

    def encode_batch(self, texts):
        type(self).calls += 1
        return super().encode_batch(texts)


def test_records_are_tokenised_once_for_what_is_read_of_them(tmp_path):
    made = dataset(tmp_path, tokenizer=CountingTokenizer(), split=HashSplit(0.0, 0.0))
    assert CountingTokenizer.calls == 1
    again = dataset(tmp_path, tokenizer=CountingTokenizer(), split=HashSplit(0.0, 0.0))
    assert CountingTokenizer.calls == 1 and again.manifest() == made.manifest()
    other = SequenceToSequenceConfig(source="de", target="en", source_length=40)
    turned = dataset(tmp_path, tokenizer=CountingTokenizer(), objective=other, split=HashSplit(0.0, 0.0))
    assert CountingTokenizer.calls == 2 and turned.manifest()["digest"] != made.manifest()["digest"]


def test_what_does_not_go_together_is_refused(tmp_path):
    records = RecordsConfig(write(tmp_path, pairs()))
    text = CorpusConfig(TextFilesConfig((str(tmp_path / "records.jsonl"),)))
    tokenizer, cache = FakeTokenizer(), tmp_path / "cache"

    def build(source, objective):
        return DataConfig(source, LENGTH, 4).build(tokenizer, cache, 0, objective.examples(MODEL, tokenizer, LENGTH))

    with pytest.raises(
        ValueError, match="trains on plain text, and data.source has structured records: use a CorpusConfig"
    ):
        build(records, CausalLMConfig())
    with pytest.raises(
        ValueError, match="reads structured records, and data.source is plain text: use a RecordsConfig"
    ):
        build(text, OBJECTIVE)
    for objective in (OBJECTIVE, FillInTheMiddleConfig()):
        with pytest.raises(ValueError, match="MarkovConfig has no documents: use a CorpusConfig or a RecordsConfig"):
            build(MarkovConfig(10), objective)
    with pytest.raises(ValueError, match="is no JSON .*: set `field` of the reader to None"):
        (tmp_path / "text.txt").write_text("no json")
        build(RecordsConfig(TextFilesConfig((str(tmp_path / "text.txt"),)), HashSplit(0.0, 0.0)), OBJECTIVE)
    with pytest.raises(ValueError, match="has 3 rows, and data.batch_size is 4"):
        dataset(tmp_path, pairs(3), pack=False, split=HashSplit(0.0, 0.0))

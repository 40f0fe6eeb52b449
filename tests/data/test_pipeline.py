import itertools
import json
import math

import numpy as np
import pytest

from llm_jax.core import config_text
from llm_jax.data.corpus import CorpusConfig
from llm_jax.data.examples import Examples
from llm_jax.data.markov import MarkovConfig
from llm_jax.data.mixture import MixtureConfig, WeightedSource
from llm_jax.data.packing import PackedConfig, RandomWindowsConfig
from llm_jax.data.pipeline import DataConfig
from llm_jax.data.sources import StandardLibraryConfig, TextFilesConfig
from llm_jax.data.splits import HashSplit
from llm_jax.data.synthetic import CopyConfig
from tests.helpers.fake_tokenizer import FakeTokenizer

LENGTH, BATCH = 16, 8


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "corpus").mkdir()
    for i in range(80):
        (tmp_path / "corpus" / f"{i}.txt").write_text(f"document {i}: " + "x" * (i % 23))
    return tmp_path


def corpus(folder, packing):
    return CorpusConfig(TextFilesConfig((str(folder / "corpus"),)), HashSplit(0.2, 0.1), packing)


def source(folder, kind):
    return {
        "packed": lambda: corpus(folder, PackedConfig()),
        "windows": lambda: corpus(folder, RandomWindowsConfig()),
        "markov": lambda: MarkovConfig(symbols=5),
        "mixture": lambda: MixtureConfig(
            (
                WeightedSource("text", corpus(folder, PackedConfig()), 0.7, changes=((3, 0.2),)),
                WeightedSource("copy", CopyConfig(length=4), 0.3),
            ),
            block=10,
        ),
    }[kind]()


def dataset(folder, kind="packed", seed=0, transform=None, read_ahead=2):
    config = DataConfig(source(folder, kind), LENGTH, BATCH, read_ahead)
    return config.build(FakeTokenizer(), folder / "cache", seed, Transformed(transform) if transform else Examples())


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def differ(left, right):
    return any((a["tokens"] != b["tokens"]).any() for a, b in zip(left, right, strict=True))


class Transformed(Examples):
    """Examples whose packed rows go through a function."""

    def __init__(self, transform):
        self._transform = transform

    def row(self, row, generator):
        return self._transform(row, generator)


def noisy(row, generator):
    """What an objective may do: change a row at random, and add an array."""
    draw = generator.integers(1000, size=len(row["tokens"])).astype(np.int32)
    return row | {"noise": draw}


KINDS = ("packed", "windows", "markov", "mixture")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_hosts_together_read_the_batches_that_one_host_reads(folder, kind, hosts):
    # Far enough to reach the second epoch of the text (about 17 batches of it).
    steps = 25
    data = dataset(folder, kind, transform=noisy)
    whole = take(data.train_iterator(), steps)
    shares = [take(data.train_iterator(host=host, hosts=hosts), steps) for host in range(hosts)]
    assert shares[0][0]["tokens"].shape == (BATCH // hosts, LENGTH + 1)
    together = [
        {name: np.concatenate([share[step][name] for share in shares]) for name in whole[0]} for step in range(steps)
    ]
    assert_equal(together, whole)
    assert len({batch["tokens"].tobytes() for batch in whole}) == steps


@pytest.mark.parametrize("kind", KINDS)
def test_order_depends_on_the_seed_and_on_nothing_else(folder, kind):
    def batches(**settings):
        return take(dataset(folder, kind, transform=noisy, **settings).train_iterator(), 12)

    first = batches(read_ahead=0)
    assert_equal(batches(read_ahead=0), first)
    assert_equal(batches(read_ahead=5), first)
    assert differ(batches(seed=1), first)
    noise = np.stack([batch["noise"] for batch in first])
    assert len(np.unique(noise.reshape(-1, LENGTH + 1), axis=0)) == 12 * BATCH


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read_ahead", [0, 3])
def test_a_restored_iterator_continues_with_the_very_next_batch(folder, kind, read_ahead):
    data = dataset(folder, kind, transform=noisy, read_ahead=read_ahead)
    uninterrupted = take(data.train_iterator(), 20)
    iterator = data.train_iterator()
    for step in range(0, 20, 5):
        state = json.loads(json.dumps(iterator.get_state()))
        assert_equal(take(iterator, 5), uninterrupted[step : step + 5])
        # What was read after the state was taken is forgotten.
        iterator.set_state(state)
        fresh = dataset(folder, kind, transform=noisy, read_ahead=read_ahead).train_iterator()
        fresh.set_state(state)
        expected = uninterrupted[step : step + 5]
        assert_equal(take(iterator, 5), expected)
        assert_equal(take(fresh, 5), expected)
        assert_equal(take(data.train_iterator(start_step=step), 5), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_evaluation_has_one_shape_and_ends_in_padding(folder, kind, hosts):
    data = dataset(folder, kind, transform=noisy)
    sets = [data.evaluation("validation", host, hosts) for host in range(hosts)]
    names = ["validation/text", "validation/copy"] if kind == "mixture" else ["validation"]
    assert [found.name for found in sets[0]] == names
    for alone, *shares in zip(data.evaluation("validation"), *sets, strict=True):
        batches = list(alone.batches)
        assert len(batches) == len(alone.batches) > 1
        assert_equal(alone.batches[1:], batches[1:])
        assert {batch["tokens"].shape for batch in batches} == {(BATCH, LENGTH + 1)}
        parts = [list(share.batches) for share in shares]
        together = [
            {name: np.concatenate([part[step][name] for part in parts]) for name in batches[0]}
            for step in range(len(batches))
        ]
        assert_equal(together, batches)
        assert_equal(list(alone.batches), batches)


def test_evaluation_pads_the_last_batch_and_counts_every_byte_once(folder):
    (found,) = dataset(folder).evaluation("validation")
    segments = np.concatenate([batch["segment_ids"] for batch in found.batches])
    tokens = np.concatenate([batch["tokens"] for batch in found.batches])
    counted = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    assert (tokens[:, 1:][counted] < 256).sum() == found.text_bytes
    rows_used = (segments > 0).any(axis=1)
    assert not rows_used.all() and rows_used[: rows_used.sum()].all()
    # A smaller sample is of fewer batches of the same shape, with bytes of its own.
    (sample,) = dataset(folder).evaluation("validation", max_bytes=found.text_bytes // 2)
    assert 0 < sample.text_bytes <= found.text_bytes // 2
    assert len(sample.batches) < len(found.batches)
    assert sample.batches[0]["tokens"].shape == found.batches[0]["tokens"].shape


def test_synthetic_parts_are_independent_draws(tmp_path):
    chain = MarkovConfig(symbols=50, concentration=5.0)
    data = DataConfig(chain, LENGTH, BATCH).build(None, tmp_path, seed=0)
    (validation,), (test,) = data.evaluation("validation"), data.evaluation("test")
    assert validation.text_bytes is None and math.isclose(validation.optimal_loss, chain.task(17).optimal_loss)
    parts = [take(data.train_iterator(), 8), list(validation.batches), list(test.batches)]
    rows = [row.tobytes() for part in parts for batch in part for row in batch["tokens"]]
    assert len(set(rows)) == len(rows) == 3 * 64


@pytest.mark.parametrize("kind", KINDS)
def test_the_manifest_names_what_the_rows_are_made_from(folder, kind):
    before = dataset(folder, kind).manifest()
    assert json.loads(json.dumps(before)) == before
    assert len(before["digest"]) == 16
    assert dataset(folder, kind, seed=1).manifest() == before
    (folder / "corpus" / "0.txt").write_text("changed")
    changed = dataset(folder, kind).manifest()["digest"] != before["digest"]
    assert changed == (kind != "markov")


def test_text_of_a_part_is_what_evaluation_and_baselines_share(folder):
    config = DataConfig(source(folder, "packed"), LENGTH, BATCH)
    (found,) = dataset(folder).evaluation("validation", max_bytes=300)
    assert sum(len(d.text.encode()) for d in config.text("validation", 300)) == found.text_bytes
    text = source(folder, "packed")
    two = MixtureConfig((WeightedSource("a", text), WeightedSource("b", text)))
    assert len(list(DataConfig(two, LENGTH, BATCH).text("train"))) == 2 * len(list(config.text("train")))
    with pytest.raises(ValueError, match="CopyConfig has no text: use a CorpusConfig"):
        DataConfig(source(folder, "mixture"), LENGTH, BATCH).text("train")


def test_a_source_without_text_needs_no_tokenizer(tmp_path):
    data = DataConfig(MarkovConfig(symbols=5), LENGTH, BATCH).build(None, tmp_path, seed=0)
    assert data.vocab_size == 5
    assert next(data.train_iterator())["tokens"].shape == (BATCH, LENGTH + 1)
    assert data.manifest()["tokenizer"] is None


@pytest.mark.parametrize("kind", KINDS)
def test_configs_survive_their_own_text(folder, kind):
    config = DataConfig(source(folder, kind), LENGTH, BATCH)
    assert config_text.parse(config_text.to_text(config)) == config


def test_hosts_that_do_not_divide_the_batch_are_refused(folder):
    with pytest.raises(ValueError, match="number of hosts is 3 and batch_size is 8"):
        dataset(folder).train_iterator(host=0, hosts=3)
    with pytest.raises(ValueError, match="host is 2: it must be one of 0 to 1"):
        dataset(folder).train_iterator(host=2, hosts=2)


@pytest.mark.parametrize("fields", [{"sequence_length": 0}, {"batch_size": -1}, {"read_ahead": -1}])
def test_impossible_sizes_are_refused(fields):
    sizes = {"sequence_length": 8, "batch_size": 2, **fields}
    with pytest.raises(ValueError, match=next(iter(fields))):
        DataConfig(CorpusConfig(StandardLibraryConfig()), **sizes)


def test_an_error_while_reading_ahead_reaches_the_caller(folder):
    def broken(row, generator):
        raise ValueError("the objective cannot use this row")

    with pytest.raises(ValueError, match="cannot use this row"):
        next(dataset(folder, transform=broken).train_iterator())

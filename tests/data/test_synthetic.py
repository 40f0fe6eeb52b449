import collections
import math
from pathlib import Path

import numpy as np
import pytest

from llm_jax.data.row_source import RowContext
from llm_jax.data.synthetic import CopyConfig, InductionConfig, ModularAdditionConfig
from tests.helpers.fake_tokenizer import FakeTokenizer

TINY = [
    CopyConfig(symbols=3, length=2),
    CopyConfig(symbols=2, length=4),
    ModularAdditionConfig(modulus=5),
    InductionConfig(keys=3, values=2, pairs=2, queries=1),
    InductionConfig(keys=3, values=1, pairs=3, queries=3),
]
LARGE = [CopyConfig(), ModularAdditionConfig(), InductionConfig()]


def context(sequence_length=64, seed=0, tokenizer=None):
    return RowContext(tokenizer, Path("unused"), sequence_length, batch_size=4, seed=seed)


def entropy_by_counting(samples):
    """Nats per target of examples [count, length], from how often each beginning occurs: knows nothing of the task."""
    nats, count = 0.0, len(samples)
    for t in range(1, samples.shape[1]):
        longer = collections.Counter(map(bytes, samples[:, : t + 1].astype(np.uint8)))
        shorter = collections.Counter(map(bytes, samples[:, :t].astype(np.uint8)))
        nats += sum(n / count * math.log(n / count) for n in shorter.values())
        nats -= sum(n / count * math.log(n / count) for n in longer.values())
    return nats / (samples.shape[1] - 1)


@pytest.mark.parametrize("config", TINY, ids=str)
def test_the_stated_optimum_is_the_entropy_of_what_is_drawn(config):
    task = config.task(64)
    samples = task.sample(np.random.default_rng(0), 20_000)
    assert samples.shape == (20_000, task.length)
    assert samples.min() >= 0 and samples.max() < task.vocab_size
    assert task.optimal_loss > 0
    assert abs(entropy_by_counting(samples) - task.optimal_loss) < 0.005


def test_copies_are_copies():
    samples = CopyConfig(symbols=7, length=9).task(64).sample(np.random.default_rng(0), 50)
    np.testing.assert_array_equal(samples[:, :9], samples[:, 10:])
    assert (samples[:, 9] == 7).all() and samples[:, :9].max() < 7


def test_sums_are_sums():
    samples = ModularAdditionConfig(modulus=11).task(64).sample(np.random.default_rng(0), 50)
    assert (samples[:, 3] == (samples[:, 0] + samples[:, 1]) % 11).all()
    assert (samples[:, 2] == 11).all()


def test_queries_are_answered_by_the_value_of_their_key():
    samples = InductionConfig(keys=9, values=5, pairs=6, queries=4).task(64).sample(np.random.default_rng(0), 50)
    for sample in samples:
        pairs, queries = sample[:12].reshape(6, 2), sample[12:].reshape(4, 2)
        values = dict(map(tuple, pairs))
        assert len(values) == 6 and max(values) < 9 and min(values.values()) >= 9 and max(values.values()) < 14
        assert [values[key] for key, _ in queries] == [value for _, value in queries]
        assert len({key for key, _ in queries}) == 4


@pytest.mark.parametrize("config", LARGE, ids=str)
def test_a_row_holds_whole_examples_as_segments_and_padding_after_them(config):
    source = config.build(context(sequence_length=69))
    length = config.task(70).length
    for i in range(5):
        row = source.train()[i]
        examples = 70 // length
        used = examples * length
        expected = np.repeat(np.arange(1, examples + 1), length)
        np.testing.assert_array_equal(row["segment_ids"], np.pad(expected, (0, 70 - used)))
        np.testing.assert_array_equal(row["positions"][:used], np.tile(np.arange(length), examples))
        assert not row["tokens"][used:].any() and not row["positions"][used:].any()
        assert all(array.dtype == np.int32 and array.shape == (70,) for array in row.values())


@pytest.mark.parametrize("config", LARGE, ids=str)
def test_rows_are_a_pure_function_of_seed_part_and_index(config):
    def tokens(source_rows, indices):
        return [source_rows[i]["tokens"].tolist() for i in indices]

    first = tokens(config.build(context()).train(), range(8))
    assert tokens(config.build(context()).train(), reversed(range(8))) == first[::-1]
    assert len(set(map(tuple, first))) == 8
    assert tokens(config.build(context(seed=1)).train(), range(8)) != first
    validation = config.build(context()).evaluation("validation", None)[""]
    assert tokens(validation.rows, range(8)) != first
    assert validation.count == config.evaluation_rows and validation.text_bytes is None
    assert validation.optimal_loss == config.task(65).optimal_loss


@pytest.mark.parametrize("config", LARGE, ids=str)
def test_a_row_too_short_for_one_example_is_refused(config):
    length = config.task(99).length
    config.build(context(sequence_length=length - 1))
    with pytest.raises(ValueError, match=f"set sequence_length to at least {length - 1}"):
        config.build(context(sequence_length=length - 2))


def test_a_vocabulary_too_small_for_the_task_is_refused():
    ModularAdditionConfig(modulus=258).build(context(tokenizer=FakeTokenizer()))
    with pytest.raises(ValueError, match="uses 260 tokens, more than the tokenizer has"):
        ModularAdditionConfig(modulus=259).build(context(tokenizer=FakeTokenizer()))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (CopyConfig, {"symbols": 0}),
        (CopyConfig, {"length": -1}),
        (ModularAdditionConfig, {"modulus": 0}),
        (ModularAdditionConfig, {"evaluation_rows": 0}),
        (InductionConfig, {"pairs": 33}),
        (InductionConfig, {"queries": 9}),
    ],
)
def test_impossible_tasks_are_refused(kind, fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        kind(**fields)

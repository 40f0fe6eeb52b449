import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from llm_jax.data.markov import MarkovConfig
from llm_jax.data.row_source import RowContext


def every_chain(task, order):
    """(tokens, probability) of every possible chain, the stationary start found by linear algebra."""
    contexts, symbols = task.table.shape
    step = np.zeros((contexts, contexts))
    for now, token in itertools.product(range(contexts), range(symbols)):
        step[now, (now * symbols + token) % contexts] += task.table[now, token]
    values, vectors = np.linalg.eig(step.T)
    start = np.real(vectors[:, np.argmax(np.real(values))])
    start /= start.sum()
    for tokens in itertools.product(range(symbols), repeat=task.length):
        now = sum(token * symbols**place for place, token in enumerate(reversed(tokens[:order])))
        probability = start[now]
        for token in tokens[order:]:
            probability *= task.table[now, token]
            now = (now * symbols + token) % contexts
        yield tokens, probability


def entropy(probabilities):
    return -sum(p * math.log(p) for p in probabilities if p > 0)


@pytest.mark.parametrize(("order", "symbols", "length"), [(1, 3, 5), (2, 3, 5), (3, 2, 8), (2, 3, 3)])
def test_the_stated_optimum_is_the_entropy_over_every_possible_chain(order, symbols, length):
    task = MarkovConfig(symbols=symbols, order=order, concentration=0.5).task(length)
    chains = dict(every_chain(task, order))
    assert math.isclose(sum(chains.values()), 1, abs_tol=1e-9)
    first = [sum(p for tokens, p in chains.items() if tokens[0] == symbol) for symbol in range(symbols)]
    expected = (entropy(chains.values()) - entropy(first)) / (length - 1)
    assert math.isclose(task.optimal_loss, expected, rel_tol=1e-9)
    if order == 1:
        assert math.isclose(task.optimal_loss, task.entropy_rate, rel_tol=1e-9)
    else:
        # The first targets have less context than they could use, and cost more than the rest.
        assert task.optimal_loss > task.entropy_rate * 1.001


@pytest.mark.parametrize("order", [1, 2])
def test_chains_follow_the_table_from_their_first_token(order):
    symbols = 3
    task = MarkovConfig(symbols=symbols, order=order, concentration=0.5).task(4)
    chains = dict(every_chain(task, order))
    samples = task.sample(np.random.default_rng(0), 20_000)
    assert samples.shape == (20_000, 4)
    index = samples @ symbols ** np.arange(3, -1, -1)
    counts = np.bincount(index, minlength=symbols**4)
    for number, (_, probability) in enumerate(chains.items()):
        spread = math.sqrt(20_000 * probability * (1 - probability))
        assert abs(counts[number] - 20_000 * probability) < 5 * spread + 1


def test_a_model_that_knows_the_table_reaches_the_entropy_rate():
    task = MarkovConfig(symbols=16, order=1).task(2001)
    samples = task.sample(np.random.default_rng(1), 20)
    nats = -np.log(task.table[samples[:, :-1], samples[:, 1:]])
    spread = nats.std() / math.sqrt(nats.size)
    assert abs(nats.mean() - task.optimal_loss) < 6 * spread < 0.1
    assert 0.3 * math.log(16) < task.optimal_loss < 0.9 * math.log(16)


def test_the_table_has_its_own_seed_and_the_rows_follow_the_runs():
    def row(table_seed, seed):
        config = MarkovConfig(symbols=8, table_seed=table_seed)
        return config.build(RowContext(None, Path("unused"), 32, 4, seed)).train()[5]["tokens"].tolist()

    assert row(0, 0) == row(0, 0)
    assert row(0, 0) != row(0, 1)
    assert row(0, 0) != row(1, 0)
    tables = [MarkovConfig(symbols=8, table_seed=seed).task(9).table for seed in (0, 0, 1)]
    np.testing.assert_array_equal(tables[0], tables[1])
    assert not np.allclose(tables[0], tables[2])


def test_rows_are_one_whole_chain():
    row = MarkovConfig(symbols=8).build(RowContext(None, Path("unused"), 32, 4, 0)).train()[0]
    assert row["tokens"].shape == (33,) and row["tokens"].max() < 8
    np.testing.assert_array_equal(row["segment_ids"], 1)
    np.testing.assert_array_equal(row["positions"], np.arange(33))


def test_impossible_chains_are_refused():
    with pytest.raises(ValueError, match=r"symbols is 100 and order is 3: the table has .* at most 262144"):
        MarkovConfig(symbols=100, order=3)
    with pytest.raises(ValueError, match="concentration is 0"):
        MarkovConfig(concentration=0.0)
    with pytest.raises(ValueError, match="sequence_length is 2: it must be at least the order of the chain, 3"):
        MarkovConfig(symbols=4, order=3).task(3)

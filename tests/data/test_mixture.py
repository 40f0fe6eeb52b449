import collections
from pathlib import Path

import numpy as np
import pytest

from llm_jax.data.markov import MarkovConfig
from llm_jax.data.mixture import MixedRows, MixtureConfig, WeightedSource
from llm_jax.data.row_source import RowContext
from llm_jax.data.synthetic import CopyConfig, ModularAdditionConfig

SOURCE = ModularAdditionConfig()


def mixture(*weights, block=10, changes=()):
    changes = dict(changes)
    sources = tuple(
        WeightedSource(f"s{i}", SOURCE, weight, changes=changes.get(i, ())) for i, weight in enumerate(weights)
    )
    return MixtureConfig(sources, block=block)


def located(config, count, batch_size=4, seed=0):
    rows = MixedRows(config, [None] * len(config.sources), batch_size, seed)
    return [rows.locate(i) for i in range(count)]


def assert_no_gap(places):
    """Every source is read in its own order, 0, 1, 2, ..."""
    found = collections.defaultdict(list)
    for source, place in places:
        found[source].append(place)
    for places_of_source in found.values():
        assert places_of_source == list(range(len(places_of_source)))


def test_proportions_are_exact_in_every_block_and_the_order_differs():
    places = located(mixture(0.6, 0.3, 0.1), 200)
    assert_no_gap(places)
    blocks = [[source for source, _ in places[start : start + 10]] for start in range(0, 200, 10)]
    for block in blocks:
        assert np.bincount(block, minlength=3).tolist() == [6, 3, 1]
    assert len(set(map(tuple, blocks))) > 10


@pytest.mark.parametrize(
    ("weights", "counts"),
    [((1, 1, 1), [4, 3, 3]), ((2, 1), [7, 3]), ((5,), [10]), ((0, 3, 1), [0, 8, 2]), ((7, 7, 6), [4, 3, 3])],
)
def test_weights_are_relative_and_rounded_to_whole_rows_of_a_block(weights, counts):
    assert mixture(*weights).counts_at(0).tolist() == counts


def test_weights_change_at_the_stated_step_and_not_a_row_is_lost():
    # 4 rows a step: the phases begin at rows 0, 28 and 68, none of them a multiple of the block.
    config = mixture(1, 0, changes={0: ((7, 0.5), (17, 0.0)), 1: ((7, 0.5), (17, 2.0))})
    places = located(config, 4 * 40)
    sources = [source for source, _ in places]
    assert set(sources[: 4 * 7]) == {0}
    for start in range(28, 58, 10):
        assert sum(sources[start : start + 10]) == 5
    assert set(sources[4 * 17 :]) == {1}
    assert_no_gap(places)


def test_order_is_a_pure_function_of_seed_and_index():
    config = mixture(0.5, 0.5, changes={0: ((3, 1.0),)})
    rows = MixedRows(config, [None, None], 4, seed=0)
    forwards = located(config, 100)
    assert [rows.locate(i) for i in reversed(range(100))] == forwards[::-1]
    assert located(config, 100, seed=1) != forwards


def test_rows_come_from_the_sources_themselves():
    config = MixtureConfig((WeightedSource("copy", CopyConfig()), WeightedSource("sum", SOURCE)), block=4)
    built = config.build(RowContext(None, Path("unused"), 40, 4, seed=0))
    rows = built.train()
    for i in range(20):
        source, _ = rows.locate(i)
        separator = (16, SOURCE.modulus)[source]
        assert separator in rows[i]["tokens"] and (17 if source == 0 else 98) > rows[i]["tokens"].max()
    assert built.vocab_size == 98
    assert set(built.evaluation("validation", None)) == {"copy", "sum"}


def test_two_alike_sources_do_not_give_the_same_rows():
    chain = MarkovConfig(symbols=8)
    config = MixtureConfig((WeightedSource("a", chain), WeightedSource("b", chain)), block=2)
    rows = config.build(RowContext(None, Path("unused"), 40, 4, seed=0)).train()
    first = [rows[i]["tokens"].tolist() for i in range(10)]
    assert len(set(map(tuple, first))) == 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mixture(0, 0), "from step 0 all weights are zero"),
        (lambda: mixture(1, 1, changes={0: ((5, 0.0),), 1: ((9, 0.0),)}), "from step 9 all weights are zero"),
        (lambda: mixture(1, -0.5), "'s1' has weight -0.5: weights must be 0 or greater"),
        (lambda: mixture(1, changes={0: ((5, -1.0),)}), "'s0' has weight -1.0"),
        (lambda: mixture(1, float("nan")), "WeightedSource.weight is nan: it must be a finite float"),
        (lambda: mixture(1, 0.01), "'s1' has weight 0.01 of 1.01, less than one row in a block of 10: increase block"),
        (lambda: mixture(1, block=0), "block is 0"),
        (lambda: mixture(1, changes={0: ((5, 1.0), (5, 2.0))}), "steps must be ascending"),
        (lambda: mixture(1, changes={0: ((0, 1.0),)}), "steps must be ascending and greater than 0"),
        (lambda: MixtureConfig(()), "sources is empty"),
        (lambda: MixtureConfig((WeightedSource("a", SOURCE),) * 2), "each name must be used once"),
        (lambda: WeightedSource("a/b", SOURCE), "name is 'a/b'"),
    ],
)
def test_impossible_mixtures_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

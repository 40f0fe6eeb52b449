"""Keys depend on seed, name and step, and on nothing else."""

import jax
import numpy as np
import pytest

from llm_jax.core import rng


def _bits(seed, name, step):
    return tuple(np.asarray(jax.random.key_data(rng.key(seed, name, step))).tolist())


def _draw(seed, name, step):
    return tuple(rng.generator(seed, name, step).integers(2**31, size=4).tolist())


@pytest.mark.parametrize("draw", [_bits, _draw], ids=["jax", "numpy"])
def test_seed_name_and_step_each_matter_and_the_same_three_repeat(draw):
    triples = [(seed, name, step) for seed in (0, 1, 2) for name in ("dropout", "sample") for step in (0, 1, 2)]
    drawn = [draw(*triple) for triple in triples]
    assert len(set(drawn)) == len(triples)
    assert drawn == [draw(*triple) for triple in triples]


def test_step_may_be_traced():
    traced = jax.jit(lambda step: jax.random.key_data(rng.key(3, "dropout", step)))(5)
    assert tuple(np.asarray(traced).tolist()) == _bits(3, "dropout", 5)


def test_large_seeds_are_not_cut_to_a_small_one():
    assert _bits(2**31 + 1, "a", 0) != _bits(1, "a", 0)
    assert _bits(2**32 - 1, "a", 0) != _bits(0, "a", 0)

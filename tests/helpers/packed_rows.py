"""Packed rows with known documents, and which tokens of a row a model reads for which score."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from llm_jax.data.examples import Row
from llm_jax.models.inputs import Inputs
from llm_jax.models.transformer import Transformer
from llm_jax.objectives import Batch, Objective

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)
"""Lengths of the documents of a row."""
SEEDS = st.integers(0, 2**32 - 1)


def row(lengths: Sequence[int], padding: int = 0, unlike: bool = False, words: int = 20, seed: int = 0) -> Row:
    """Documents of these lengths, then padding.

    Args:
      unlike: whether all tokens of the row differ: a permutation of 1, 2, ...
      words: otherwise tokens are random, from 1 to `words` - 1. Padding is 0.
    """
    generator, total = np.random.default_rng(seed), sum(lengths)
    tokens = generator.permutation(total) + 1 if unlike else generator.integers(1, words, total)
    segments = np.repeat(np.arange(len(lengths)) + 1, lengths)
    positions = np.concatenate([np.arange(length) for length in lengths])
    arrays = {"tokens": tokens, "segment_ids": segments, "positions": positions}
    return {name: np.pad(array, (0, padding)).astype(np.int32) for name, array in arrays.items()}


def stacked(objective: Objective, rows: Sequence[Row]) -> Batch:
    """The objective's batch of rows that `Examples.row` has changed."""
    return objective.batch({name: np.stack([one[name] for one in rows]) for name in rows[0]})


def influence(model: Transformer, params: Any, inputs: Inputs) -> np.ndarray:
    """Size of d(logits at t) / d(what the model reads at s) for the first row of `inputs`, [T, T]."""
    sequence = jax.tree.map(lambda x: jnp.asarray(x[:1]), inputs.located())
    length, vocabulary = inputs.shape[1], model.config.vocab_size or 0

    def scores(x_BTE: jax.Array) -> jax.Array:
        run = lambda model: model.unembed(model.hidden(Inputs(sequence=sequence, features_BTE=x_BTE)).hidden_BTD)  # noqa: E731
        logits_BTV = model.apply({"params": params}, method=run)
        return logits_BTV[0] @ jnp.sin(jnp.arange(vocabulary))

    shape = (1, length, model.config.embed.table_width(model.config.width))
    x_BTE = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    return np.asarray(jnp.abs(jax.jit(jax.jacrev(scores))(x_BTE)[:, 0]).max(axis=-1))

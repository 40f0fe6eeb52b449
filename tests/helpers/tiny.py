"""Models small enough to compile in a second, and weights that make every part of them matter."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core import trees
from llm_jax.models.build import Model, abstract_parameters
from llm_jax.models.config import EncoderDecoderConfig, ModelConfig, TransformerConfig
from llm_jax.models.families.gpt2 import gpt2
from llm_jax.models.families.llama import llama
from llm_jax.models.inputs import Inputs
from llm_jax.models.stack import Execution
from llm_jax.objectives.batch import Batch

VOCAB = 32
MAX_LENGTH = 16


def tiny_gpt2(layers: int = 2, dropout: float = 0.0) -> TransformerConfig:
    """LayerNorm, biases, learned positions, tied head."""
    return _looped(gpt2(layers, heads=4, width=16, vocab_size=VOCAB, max_length=MAX_LENGTH, dropout=dropout))


def tiny_llama(layers: int = 2) -> TransformerConfig:
    """RMSNorm, rotary positions, two query heads to a key/value head, gated ffn, a head of its own."""
    return _looped(llama(layers, heads=4, width=16, hidden=24, kv_heads=2, vocab_size=VOCAB, max_length=MAX_LENGTH))


def _looped(config: TransformerConfig) -> TransformerConfig:
    """With a loop over layers, as large models have and as compiles fastest."""
    return dataclasses.replace(config, execution=Execution(unroll=1))


FAMILIES = {"gpt2": tiny_gpt2, "llama": tiny_llama}


@functools.cache
def _shapes(model: Model) -> Any:
    return abstract_parameters(model)[0]


def parameters(model: Model, seed: int = 0) -> Any:
    """Random parameters in the model's type, large enough that biases, scales and positions change the result.

    A fresh model's logits are so near to zero that a test on them would see little.
    """
    generator = np.random.default_rng(seed)

    def draw(path: tuple, leaf: Any) -> jax.Array:
        centre = 1.0 if trees.path_name(path).endswith("scale") else 0.0
        return jnp.asarray(centre + 0.3 * generator.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, _shapes(model))


def tokens(batch: int, length: int, seed: int = 0) -> np.ndarray:
    """Random token ids, int32 [batch, length]."""
    return np.random.default_rng(seed).integers(0, VOCAB, (batch, length)).astype(np.int32)


def inputs(config: ModelConfig, batch: int, length: int) -> Inputs:
    """Random tokens; of an encoder-decoder a source of `length` and a shorter target."""
    if isinstance(config, EncoderDecoderConfig):
        return Inputs(tokens(batch, length - 2, seed=1), encoder=Inputs(tokens(batch, length)))
    return Inputs(tokens(batch, length))


def batch(rows: int, length: int = 8, seed: int = 0) -> Batch:
    """Rows of two packed documents and, in every row after the first, some padding at the end."""
    generator = np.random.default_rng(seed)
    segments, positions = np.zeros((2, rows, length + 1), np.int32)
    for row in range(rows):
        cut = 2 + row % 3
        end = length + 1 - row % 4
        segments[row, :cut], segments[row, cut:end] = 1, 2
        positions[row, :cut], positions[row, cut:end] = np.arange(cut), np.arange(end - cut)
    ids = generator.integers(0, VOCAB, (rows, length + 1)).astype(np.int32)
    return Batch.next_tokens({"tokens": ids, "segment_ids": segments, "positions": positions})


def jacobian(function: Callable[..., jax.Array], *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """d function / d each array, [outputs, *its shape], where `function` gives a vector: one output after another, for
    what knows no batch of gradients."""
    y, pull = jax.vjp(function, *arrays)
    return jax.lax.map(pull, jnp.eye(len(y), dtype=y.dtype))

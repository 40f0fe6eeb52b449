"""Sizes and costs of a model, from its config alone.

FLOPs count a multiply-add as two and leave out what is not a matrix product. Training costs three forward passes
(Kaplan et al. 2020, arXiv:2001.08361, section 2.1); attention counts only the pairs that its mask allows.
"""

import jax.numpy as jnp

from llm_jax.core.dtypes import Precision
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig


def parameters(config: TransformerConfig) -> int:
    """Number of parameters."""
    embed = config.embed.parameters(config.vocab_size, config.max_length, config.width)
    blocks = sum(repeats * block.parameters(config.width) for repeats, block in _blocks(config))
    final_norm = config.final_norm.parameters(config.width) if config.final_norm else 0
    return embed + blocks + final_norm + config.head.parameters(config.width, config.vocab_size)


def forward_flops(config: TransformerConfig, length: int) -> float:
    """FLOPs per token of a forward pass over rows of `length` tokens, logits included."""
    blocks = sum(
        repeats
        * (
            block.mixer.matrix_flops(config.width)
            + block.mixer.mixing_flops(length)
            + block.ffn.matrix_flops(config.width)
        )
        for repeats, block in _blocks(config)
    )
    return blocks + 2 * config.width * config.vocab_size


def training_flops(config: TransformerConfig, length: int) -> float:
    """FLOPs per token of forward and backward pass; recomputation by remat is not counted."""
    return 3 * forward_flops(config, length)


def cache_bytes(config: TransformerConfig, length: int, precision: Precision) -> int:
    """Bytes of the keys and values of one row of `length` tokens."""
    size = jnp.dtype(precision.dtype).itemsize
    return sum(
        repeats * 2 * block.mixer.kv_heads * block.mixer.head_dim * length * size for repeats, block in _blocks(config)
    )


def _blocks(config: TransformerConfig) -> list[tuple[int, BlockConfig]]:
    return [(segment.repeats, block) for segment in config.segments for block in segment.blocks]

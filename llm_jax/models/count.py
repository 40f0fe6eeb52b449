"""Sizes and costs of a model, from its config alone.

FLOPs count a multiply-add as two and leave out what is not a matrix product. Training costs three forward passes
(Kaplan et al. 2020, arXiv:2001.08361, section 2.1); attention counts only the pairs that its mask allows.
"""

import jax

from llm_jax.core import trees
from llm_jax.core.dtypes import Precision
from llm_jax.models.config import TransformerConfig


def parameters(config: TransformerConfig) -> int:
    """Number of parameters."""
    embed = config.embed.parameters(config.vocab_size, config.max_length, config.width)
    blocks = sum(
        (1 if segment.shared else segment.repeats) * block.parameters(config.width)
        for segment in config.segments
        for block in segment.blocks
    )
    bias = config.relative_bias[0].parameters(config.relative_bias[1]) if config.relative_bias else 0
    final_norm = config.final_norm.parameters(config.width) if config.final_norm else 0
    return embed + blocks + bias + final_norm + config.head.parameters(config.width, config.vocab_size)


def forward_flops(config: TransformerConfig, length: int) -> float:
    """FLOPs per token of a forward pass over rows of `length` tokens, logits included."""
    blocks = sum(
        segment.repeats * block.forward_flops(config.width, length)
        for segment in config.segments
        for block in segment.blocks
    )
    return blocks + 2 * config.width * config.vocab_size


def training_flops(config: TransformerConfig, length: int) -> float:
    """FLOPs per token of forward and backward pass; recomputation by remat is not counted."""
    return 3 * forward_flops(config, length)


def cache_bytes(config: TransformerConfig, length: int, precision: Precision) -> int:
    """Bytes of the states of all layers for one row of `length` tokens."""
    states = jax.eval_shape(
        lambda: [
            [block.allocate(1, length, 0, precision.dtype) for block in segment.blocks] * segment.repeats
            for segment in config.segments
        ]
    )
    return trees.size_bytes(states)

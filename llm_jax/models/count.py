"""Sizes and costs of a model, computed from its config.

A multiply-add counts as two FLOPs; only matrix products count. Training costs three forward passes (Kaplan et al. 2020,
arXiv:2001.08361, section 2.1). Attention counts only the pairs that its mask allows.
"""

import jax

from llm_jax.core import trees
from llm_jax.core.dtypes import Precision
from llm_jax.models.config import EncoderDecoderConfig, GeneratorDiscriminatorConfig, ModelConfig, TransformerConfig
from llm_jax.models.stack import Segment


def parameters(config: ModelConfig) -> int:
    """Number of parameters."""
    head = config.head.parameters(*config.head_sizes) if isinstance(config, GeneratorDiscriminatorConfig) else 0
    return sum(_parameters(stack) for stack in config.stacks) + head


def active_parameters(config: ModelConfig) -> float:
    """Mean number of parameters used per token of a forward pass: all except those of experts to which the token is not
    routed, and those of `multi_token`."""
    idle = 0.0
    for width, segment in ((stack.width, segment) for stack in config.stacks for segment in stack.segments):
        unvisited = sum(block.parameters(width) - block.active_parameters(width) for block in segment.blocks)
        idle += _copies(segment) * unvisited
    return parameters(config) - idle - sum(map(multi_token_parameters, config.stacks))


def multi_token_parameters(config: TransformerConfig) -> int:
    """Number of parameters of the modules of `multi_token`."""
    return config.multi_token.parameters(config.segments, config.width) if config.multi_token else 0


def multi_token_flops(config: TransformerConfig, length: int) -> float:
    """FLOPs per token of a forward pass through the modules of `multi_token`, including their logits, which
    `forward_flops` does not count."""
    heads = config.multi_token
    if heads is None:
        return 0
    logits = config.head.matrix_flops(*_head_sizes(config)) if config.head else 0
    each = logits + (_factorized_flops(config) if heads.reads_tokens else 0)
    return heads.forward_flops(config.segments, config.width, length) + (heads.tokens - 1) * each


def forward_flops(config: ModelConfig, length: int) -> float:
    """FLOPs per token of a forward pass over sequences of `length` tokens, including logits. For an encoder-decoder:
    FLOPs per decoder token, with an encoder sequence of the same length, including its encoding. For a generator and a
    discriminator: of both, including the generator's logits of all tokens."""
    if isinstance(config, EncoderDecoderConfig):
        return pair_flops(config, length, length) / length
    if isinstance(config, GeneratorDiscriminatorConfig):
        logits = config.head.matrix_flops(*config.head_sizes)
        return logits + sum(_forward_flops(stack, length) for stack in config.stacks)
    return _forward_flops(config, length)


def pair_flops(config: EncoderDecoderConfig, source: int, target: int) -> float:
    """FLOPs of a forward pass over `source` encoder tokens and `target` decoder tokens, including logits."""
    return source * _forward_flops(config.encoder, source) + target * _forward_flops(config.decoder, target, source)


def training_flops(config: ModelConfig, length: int) -> float:
    """FLOPs per token of forward and backward pass; recomputation by remat is not counted."""
    return 3 * forward_flops(config, length)


def cache_bytes(config: ModelConfig, length: int, precision: Precision) -> int:
    """Bytes of the KV caches and states of all layers for one sequence of `length` tokens, in an encoder-decoder with
    an encoder sequence of the same length."""
    decoder = config.stacks[-1]
    states = jax.eval_shape(
        lambda: [
            [block.allocate(1, length, length, precision.dtype) for block in segment.blocks] * segment.repeats
            for segment in decoder.segments
        ]
    )
    return trees.size_bytes(states)


def _parameters(config: TransformerConfig) -> int:
    blocks = sum(
        _copies(segment) * block.parameters(config.width) for segment in config.segments for block in segment.blocks
    )
    bias = config.relative_bias[0].parameters(config.relative_bias[1]) if config.relative_bias else 0
    final_norm = config.final_norm.parameters(config.width) if config.final_norm else 0
    head = config.head.parameters(*_head_sizes(config)) if config.head else 0
    embed = config.embed.parameters(config.vocab_size, config.max_length, config.width)
    return embed + blocks + bias + final_norm + head + multi_token_parameters(config)


def _copies(segment: Segment) -> int:
    """Number of copies of the weights of a block of the segment."""
    return 1 if segment.shared else segment.repeats


def _forward_flops(config: TransformerConfig, length: int, encoder_length: int = 0) -> float:
    blocks = sum(
        segment.repeats * block.forward_flops(config.width, length, encoder_length)
        for segment in config.segments
        for block in segment.blocks
    )
    logits = config.head.matrix_flops(*_head_sizes(config)) if config.head else 0
    return blocks + _factorized_flops(config) + logits


def _factorized_flops(config: TransformerConfig) -> int:
    # A lookup in the table has no matrix product; the projection of a factorized embedding is one.
    return 2 * config.embed.factorized.width * config.width if config.embed.factorized else 0


def _head_sizes(config: TransformerConfig) -> tuple[int, int, int]:
    """Width, vocabulary size and width of the embedding table. The vocabulary size is 0 if there is none; then no head
    reads it."""
    return config.width, config.vocab_size or 0, config.embed.table_width(config.width)

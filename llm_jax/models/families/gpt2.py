"""GPT-2 (Radford et al. 2019, 'Language Models are Unsupervised Multitask Learners', section 2.3 and table 2)."""

import math

from llm_jax.core.checks import check_divides
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.linear import Normal
from llm_jax.layers.mixers.attention import AttentionConfig
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.learned import LearnedPositionsConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.stack import Segment


def gpt2(
    layers: int,
    heads: int,
    width: int,
    vocab_size: int = 50257,
    max_length: int = 1024,
    bias: bool = True,
    dropout: float = 0.0,
) -> TransformerConfig:
    """A GPT-2 of any size. The weights that write to the residual stream start smaller by 1/sqrt(2 layers)."""
    check_divides(heads, width, "heads", "width")
    out_init = Normal(0.02 / math.sqrt(2 * layers))
    norm = LayerNormConfig(bias=bias)
    block = BlockConfig(
        mixer=AttentionConfig(heads, width // heads, kv_heads=heads, bias=bias, out_init=out_init),
        ffn=MLPConfig(4 * width, activation="gelu_tanh", bias=bias, out_init=out_init),
        norm=norm,
        dropout=dropout,
    )
    return TransformerConfig(
        vocab_size=vocab_size,
        width=width,
        max_length=max_length,
        segments=(Segment((block,), layers),),
        final_norm=norm,
        embed=EmbedConfig(position=LearnedPositionsConfig(), dropout=dropout),
    )


SIZES = {
    "gpt2": lambda: gpt2(12, 12, 768),
    "gpt2-medium": lambda: gpt2(24, 16, 1024),
    "gpt2-large": lambda: gpt2(36, 20, 1280),
    "gpt2-xl": lambda: gpt2(48, 25, 1600),
}

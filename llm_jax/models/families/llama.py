"""LLaMA 1 and 2 (Touvron et al. 2023, arXiv:2302.13971 table 2 and arXiv:2307.09288 table 1)."""

import math

from llm_jax.core.checks import check_divides
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.linear import Normal
from llm_jax.layers.mixers.attention import AttentionConfig
from llm_jax.layers.norms import RMSNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import HeadConfig, TiedHead, TransformerConfig
from llm_jax.models.stack import Segment


def llama(
    layers: int,
    heads: int,
    width: int,
    hidden: int,
    kv_heads: int | None = None,
    vocab_size: int = 32000,
    max_length: int = 2048,
    rope_base: float = 10_000.0,
    epsilon: float = 1e-6,
    tied: bool = False,
) -> TransformerConfig:
    """A LLaMA of any size; `kv_heads` None means as many as heads."""
    check_divides(heads, width, "heads", "width")
    out_init = Normal(0.02 / math.sqrt(2 * layers))
    norm = RMSNormConfig(epsilon)
    block = BlockConfig(
        mixer=AttentionConfig(
            heads,
            width // heads,
            kv_heads=heads if kv_heads is None else kv_heads,
            position=RoPEConfig(rope_base),
            out_init=out_init,
        ),
        ffn=GLUConfig(hidden, activation="silu", out_init=out_init),
        norm=norm,
    )
    return TransformerConfig(
        vocab_size=vocab_size,
        width=width,
        max_length=max_length,
        segments=(Segment((block,), layers),),
        final_norm=norm,
        head=TiedHead() if tied else HeadConfig(),
    )


SIZES = {
    "llama-7b": lambda: llama(32, 32, 4096, 11008),
    "llama-13b": lambda: llama(40, 40, 5120, 13824),
    "llama-33b": lambda: llama(60, 52, 6656, 17920),
    "llama-65b": lambda: llama(80, 64, 8192, 22016),
    "llama2-7b": lambda: llama(32, 32, 4096, 11008, max_length=4096, epsilon=1e-5),
    "llama2-13b": lambda: llama(40, 40, 5120, 13824, max_length=4096, epsilon=1e-5),
    "llama2-70b": lambda: llama(80, 64, 8192, 28672, kv_heads=8, max_length=4096, epsilon=1e-5),
}

"""PaLM (Chowdhery et al. 2022, arXiv:2204.02311, section 2 and table 1). Its weights are not published: only parameter
counts can be compared.

Initialisation: Gaussian of variance 1 / fan-in for matrices, N(0, 1) for token embeddings, no biases. Logits from the
shared table are scaled by 1 / sqrt(width) (section 5, "Weight initialization").
"""

from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.initialisers import FanIn, Normal
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.block import BlockConfig, Parallel
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import decoder
from llm_jax.models.heads import TiedHead


def palm(
    layers: int, heads: int, width: int, *, vocab_size: int = 256_000, max_length: int = 2048
) -> TransformerConfig:
    """A PaLM of any size: no biases, one key/value head of size 256, ffn four times the model width, tied head."""
    norm, init = LayerNormConfig(bias=False), FanIn()
    mixer = AttentionConfig(heads, 256, 1, position=RoPEConfig(), init=init, out_init=init)
    ffn = GLUConfig(4 * width, activation="silu", init=init, out_init=init)
    blocks = (BlockConfig(mixer, ffn, norm, Parallel()),) * layers
    return decoder(blocks, width, vocab_size, max_length, norm, EmbedConfig(Normal(1.0)), TiedHead(scale=width**-0.5))


SIZES = {
    "palm-8b": lambda: palm(32, 16, 4096),
    "palm-62b": lambda: palm(64, 32, 8192),
    "palm-540b": lambda: palm(118, 48, 18432),
}

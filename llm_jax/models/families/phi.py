"""Phi-1.5 and Phi-2 (Li et al. 2023, arXiv:2309.05463, section 2.1; huggingface.co/microsoft/phi-2): parallel
attention and ffn with one norm, a part of each head rotated, biases in all linear layers including the head.

Initialisation: none is published; that of GPT-2 is used, N(0, 0.02), smaller by 1 / sqrt(2 layers) for matrices that
write to the residual stream, biases 0.
"""

from llm_jax.layers.activations import Activation
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.block import BlockConfig, Parallel
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import decoder, residual_init
from llm_jax.models.heads import HeadConfig


def phi(
    layers: int,
    heads: int,
    width: int,
    *,
    hidden: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    rope: RoPEConfig = RoPEConfig(features=32),  # noqa: B008
    vocab_size: int = 51200,
    max_length: int = 2048,
    activation: Activation = "gelu_tanh",
    epsilon: float = 1e-5,
) -> TransformerConfig:
    """A Phi of any size; `kv_heads` None means as many as heads, `head_dim` None the width over the heads."""
    norm, out_init = LayerNormConfig(epsilon), residual_init(layers)
    size = width // heads if head_dim is None else head_dim
    mixer = AttentionConfig(heads, size, kv_heads or heads, position=rope, bias=True, out_init=out_init)
    ffn = MLPConfig(hidden, activation=activation, out_init=out_init)
    blocks = (BlockConfig(mixer, ffn, norm, Parallel()),) * layers
    return decoder(blocks, width, vocab_size, max_length, norm, EmbedConfig(), HeadConfig(bias=True))


SIZES = {
    "phi-1.5": lambda: phi(24, 32, 2048, hidden=8192),
    "phi-2": lambda: phi(32, 32, 2560, hidden=10240),
}

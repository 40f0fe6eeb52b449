"""Nemotron-4 15B (Parmar et al. 2024, arXiv:2402.16819, table 1 and section 2) and Minitron (Muralidharan et al. 2024,
arXiv:2407.14679, table 3), with an ungated squared ReLU; half of each head is rotated. Persimmon 8B (Elsen et al.
2023, adept.ai/blog/persimmon-8b): the same with LayerNorm, also of queries and keys per head.

Initialisation: none is published; that of GPT-2 is used, N(0, 0.02), smaller by 1 / sqrt(2 layers) for matrices that
write to the residual stream; 0.0134 of Nemotron is the `initializer_range` of its config.json files.
"""

from llm_jax.layers.activations import Activation
from llm_jax.layers.attention.attention import AttentionConfig, QKNormConfig
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.initialisers import Normal
from llm_jax.layers.norms import LayerNormConfig, OffsetLayerNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import decoder, head_config, residual_init


def nemotron(
    layers: int,
    heads: int,
    width: int,
    *,
    hidden: int,
    kv_heads: int = 8,
    head_dim: int | None = None,
    vocab_size: int = 256_000,
    max_length: int = 4096,
    rope: RoPEConfig = RoPEConfig(features=64),  # noqa: B008
    activation: Activation = "relu_squared",
    epsilon: float = 1e-5,
    bias: bool = False,
    ffn_bias: bool = False,
    tied: bool = False,
) -> TransformerConfig:
    """A Nemotron of any size; `head_dim` None means the width over the heads."""
    norm, init, out_init = OffsetLayerNormConfig(epsilon), Normal(0.0134), residual_init(layers, 0.0134)
    size = width // heads if head_dim is None else head_dim
    mixer = AttentionConfig(heads, size, kv_heads, position=rope, bias=bias, init=init, out_init=out_init)
    ffn = MLPConfig(hidden, activation=activation, bias=ffn_bias, init=init, out_init=out_init)
    blocks, head = (BlockConfig(mixer, ffn, norm),) * layers, head_config(tied, init)
    return decoder(blocks, width, vocab_size, max_length, norm, EmbedConfig(init), head)


def persimmon(
    layers: int,
    heads: int,
    width: int,
    *,
    hidden: int,
    vocab_size: int = 262_144,
    max_length: int = 16384,
    rope: RoPEConfig = RoPEConfig(25000.0, features=32),  # noqa: B008
    activation: Activation = "relu_squared",
    epsilon: float = 1e-5,
    qk_norm: bool = True,
    tied: bool = False,
) -> TransformerConfig:
    """A Persimmon of any size.

    Args:
      qk_norm: whether queries and keys are normalised per head.
    """
    norm, out_init, norms = LayerNormConfig(epsilon), residual_init(layers), QKNormConfig(LayerNormConfig(epsilon))
    mixer = AttentionConfig(
        *(heads, width // heads, heads),
        position=rope,
        qk_norm=norms if qk_norm else None,
        bias=True,
        out_init=out_init,
    )
    blocks = (BlockConfig(mixer, MLPConfig(hidden, activation=activation, out_init=out_init), norm),) * layers
    return decoder(blocks, width, vocab_size, max_length, norm, head=head_config(tied))


SIZES = {
    "nemotron4-15b": lambda: nemotron(32, 48, 6144, hidden=24576),
    "minitron-8b": lambda: nemotron(32, 48, 4096, hidden=16384, head_dim=128),
    "persimmon-8b": lambda: persimmon(36, 64, 4096, hidden=16384),
}

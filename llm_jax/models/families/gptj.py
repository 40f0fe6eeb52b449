"""GPT-J (Wang and Komatsuzaki 2021, github.com/kingoflolz/mesh-transformer-jax): parallel attention and ffn with one
norm, a quarter of each head rotated. CodeGen (Nijkamp et al. 2022, arXiv:2203.13474, table 5) has this architecture.

Initialisation: Gaussians truncated at two standard deviations: 1 / sqrt(vocabulary) of token embeddings, 2 / (layers
sqrt(width)) of matrices that write to the residual stream, 1 / sqrt(fan-in) of the other matrices and of the scores;
biases 0 (github.com/kingoflolz/mesh-transformer-jax, mesh_transformer/layers.py and transformer_shard.py, with the
defaults of Linear in github.com/google-deepmind/dm-haiku, haiku/_src/basic.py).
"""

import math

from llm_jax.core.checks import check_divides
from llm_jax.layers.activations import Activation
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.initialisers import FanIn, Normal
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.block import BlockConfig, Parallel
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import decoder
from llm_jax.models.heads import HeadConfig


def gptj(
    layers: int,
    heads: int,
    width: int,
    *,
    rotated: int = 64,
    vocab_size: int = 50400,
    max_length: int = 2048,
    hidden: int | None = None,
    activation: Activation = "gelu_tanh",
    epsilon: float = 1e-5,
) -> TransformerConfig:
    """A GPT-J of any size.

    Args:
      rotated: number of rotated features of each head.
      hidden: width of the ffn; None: four times the model width.
    """
    check_divides(heads, width, "heads", "width")
    norm, init = LayerNormConfig(epsilon), FanIn(cut=2.0)
    out_init = Normal(2 / (layers * math.sqrt(width)), cut=2.0)
    head_dim = width // heads
    rope = RoPEConfig(features=None if rotated == head_dim else rotated)
    mixer = AttentionConfig(heads, head_dim, heads, position=rope, init=init, out_init=out_init)
    ffn = MLPConfig(hidden or 4 * width, activation=activation, init=init, out_init=out_init)
    blocks = (BlockConfig(mixer, ffn, norm, Parallel()),) * layers
    embed = EmbedConfig(Normal(vocab_size**-0.5, cut=2.0))
    return decoder(blocks, width, vocab_size, max_length, norm, embed, HeadConfig(init, bias=True))


SIZES = {
    "gpt-j-6b": lambda: gptj(28, 16, 4096),
    "codegen-350m": lambda: gptj(20, 16, 1024, rotated=32, vocab_size=51200),
    "codegen-2b": lambda: gptj(32, 32, 2560, vocab_size=51200),
}

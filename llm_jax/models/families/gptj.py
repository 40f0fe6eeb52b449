"""GPT-J (Wang and Komatsuzaki 2021, github.com/kingoflolz/mesh-transformer-jax): attention and ffn side by side on one
norm, a quarter of each head rotated."""

from llm_jax.core.checks import check_divides
from llm_jax.layers.activations import Activation
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.mixers.attention import AttentionConfig
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.block import BlockConfig, Parallel
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import decoder, residual_init
from llm_jax.models.heads import HeadConfig


def gptj(
    layers: int,
    heads: int,
    width: int,
    rotated: int = 64,
    vocab_size: int = 50400,
    max_length: int = 2048,
    hidden: int | None = None,
    activation: Activation = "gelu_tanh",
    epsilon: float = 1e-5,
) -> TransformerConfig:
    """A GPT-J of any size.

    Args:
      rotated: features of each head that are rotated.
      hidden: None: four times the width.
    """
    check_divides(heads, width, "heads", "width")
    norm, out_init = LayerNormConfig(epsilon), residual_init(layers)
    head_dim = width // heads
    rope = RoPEConfig(features=None if rotated == head_dim else rotated)
    mixer = AttentionConfig(heads, head_dim, heads, position=rope, out_init=out_init)
    ffn = MLPConfig(hidden or 4 * width, activation=activation, out_init=out_init)
    blocks = (BlockConfig(mixer, ffn, norm, Parallel()),) * layers
    return decoder(blocks, width, vocab_size, max_length, norm, head=HeadConfig(bias=True))


SIZES = {"gpt-j-6b": lambda: gptj(28, 16, 4096)}

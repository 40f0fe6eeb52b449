"""StarCoder (Li et al. 2023, arXiv:2305.06161, table 5): GPT-2 with one key/value head. StarCoder 2 (Lozhkov et al.
2024, arXiv:2402.19173, table 7): rotary positions, grouped heads, a sliding window."""

from llm_jax.core.checks import check_divides
from llm_jax.layers.activations import Activation
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.mixers.attention import AttentionConfig
from llm_jax.layers.mixers.masks import Causal
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.learned import LearnedPositionsConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import decoder, head_config, residual_init


def starcoder(
    layers: int,
    heads: int,
    width: int,
    kv_heads: int = 1,
    vocab_size: int = 49152,
    max_length: int = 8192,
    hidden: int | None = None,
    activation: Activation = "gelu_tanh",
    epsilon: float = 1e-5,
    tied: bool = True,
) -> TransformerConfig:
    """A StarCoder of any size; `hidden` None means four times the width."""
    check_divides(heads, width, "heads", "width")
    norm, out_init = LayerNormConfig(epsilon), residual_init(layers)
    mixer = AttentionConfig(heads, width // heads, kv_heads, bias=True, out_init=out_init)
    ffn = MLPConfig(hidden or 4 * width, activation=activation, out_init=out_init)
    blocks, head = (BlockConfig(mixer, ffn, norm),) * layers, head_config(tied)
    embed = EmbedConfig(position=LearnedPositionsConfig())
    return decoder(blocks, width, vocab_size, max_length, norm, embed, head)


def starcoder2(
    layers: int,
    heads: int,
    width: int,
    kv_heads: int,
    hidden: int | None = None,
    vocab_size: int = 49152,
    max_length: int = 16384,
    rope: RoPEConfig = RoPEConfig(1e5),  # noqa: B008
    window: int | None = 4096,
    activation: Activation = "gelu_tanh",
    epsilon: float = 1e-5,
    bias: bool = True,
    tied: bool = False,
) -> TransformerConfig:
    """A StarCoder 2 of any size; `hidden` None means four times the width."""
    check_divides(heads, width, "heads", "width")
    norm, out_init = LayerNormConfig(epsilon), residual_init(layers)
    mixer = AttentionConfig(
        heads, width // heads, kv_heads, Causal(window), position=rope, bias=bias, out_init=out_init
    )
    ffn = MLPConfig(hidden or 4 * width, activation=activation, bias=bias, out_init=out_init)
    blocks, head = (BlockConfig(mixer, ffn, norm),) * layers, head_config(tied)
    return decoder(blocks, width, vocab_size, max_length, norm, head=head)


SIZES = {
    "starcoder": lambda: starcoder(40, 48, 6144),
    "starcoder2-3b": lambda: starcoder2(30, 24, 3072, 2, rope=RoPEConfig(999_999.4420358813), tied=True),
    "starcoder2-7b": lambda: starcoder2(32, 36, 4608, 4, rope=RoPEConfig(1e6), tied=True),
    "starcoder2-15b": lambda: starcoder2(40, 48, 6144, 4),
}

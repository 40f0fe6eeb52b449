"""BLOOM (BigScience 2022, arXiv:2211.05100, table 3) and MPT (MosaicML 2023, mosaicml.com/blog/mpt-7b): linear biases
in the place of positions; BLOOM norms the embedding, MPT has no other biases at all."""

from llm_jax.core.checks import check_divides
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.mixers.attention import AttentionConfig
from llm_jax.layers.mixers.scores import ScoresConfig
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.alibi import ALiBiConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import decoder, head_config, residual_init

_ALIBI = ScoresConfig(bias=ALiBiConfig())


def bloom(
    layers: int,
    heads: int,
    width: int,
    vocab_size: int = 250_880,
    max_length: int = 2048,
    epsilon: float = 1e-5,
    tied: bool = True,
) -> TransformerConfig:
    """A BLOOM of any size."""
    check_divides(heads, width, "heads", "width")
    norm, out_init = LayerNormConfig(epsilon), residual_init(layers)
    mixer = AttentionConfig(heads, width // heads, heads, scores=_ALIBI, bias=True, out_init=out_init)
    ffn = MLPConfig(4 * width, activation="gelu_tanh", out_init=out_init)
    blocks, head = (BlockConfig(mixer, ffn, norm),) * layers, head_config(tied)
    return decoder(blocks, width, vocab_size, max_length, norm, EmbedConfig(norm=norm), head)


def mpt(
    layers: int,
    heads: int,
    width: int,
    vocab_size: int = 50432,
    max_length: int = 2048,
    epsilon: float = 1e-5,
    scale: float | None = None,
    tied: bool = True,
) -> TransformerConfig:
    """An MPT of any size; `scale` None means 1 / sqrt(head size)."""
    check_divides(heads, width, "heads", "width")
    norm, out_init = LayerNormConfig(epsilon, bias=False), residual_init(layers)
    scores = ScoresConfig(scale, bias=ALiBiConfig())
    mixer = AttentionConfig(heads, width // heads, heads, scores=scores, out_init=out_init)
    ffn = MLPConfig(4 * width, activation="gelu", bias=False, out_init=out_init)
    blocks, head = (BlockConfig(mixer, ffn, norm),) * layers, head_config(tied)
    return decoder(blocks, width, vocab_size, max_length, norm, head=head)


SIZES = {
    "bloom-560m": lambda: bloom(24, 16, 1024),
    "bloom-1b1": lambda: bloom(24, 16, 1536),
    "bloom-1b7": lambda: bloom(24, 16, 2048),
    "bloom-3b": lambda: bloom(30, 32, 2560),
    "bloom-7b1": lambda: bloom(30, 32, 4096),
    "bloom": lambda: bloom(70, 112, 14336),
    "mpt-7b": lambda: mpt(32, 32, 4096),
    "mpt-30b": lambda: mpt(48, 64, 7168, max_length=8192),
}

"""The dense layers of DeepSeek-V2 and V3, and a model that is all of such layers.

DeepSeek-AI 2024, arXiv:2405.04434, 2.1 and 2.2, and arXiv:2412.19437, 2.1.1. DeepSeek's own sizes go on to mixtures of
experts after their first layers, and have no place here. Youtu-LLM (Tencent 2025, arXiv:2512.24618) is dense; its sizes
are those of its model card and config.json.
"""

from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.mixers.latent import LatentAttentionConfig
from llm_jax.layers.norms import RMSNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import decoder, head_config, residual_init


def deepseek(
    layers: int,
    heads: int,
    width: int,
    hidden: int,
    query_rank: int | None = 1536,
    rank: int = 512,
    head_dim: int = 128,
    rotary_dim: int = 64,
    value_dim: int = 128,
    vocab_size: int = 129_280,
    max_length: int = 4096,
    rope: RoPEConfig = RoPEConfig(),  # noqa: B008
    sharpening: float = 0.0,
    epsilon: float = 1e-6,
    tied: bool = False,
) -> TransformerConfig:
    """A dense DeepSeek of any size.

    Args:
      hidden: width of the ffn.
      query_rank: None: queries are made of the stream, as in V2-Lite.
      sharpening: of the scores, where `rope` is scaled by YaRN.
      epsilon: of the norms of the stream; those of the short vectors have 1e-6 in all published models.
    """
    norm, out_init = RMSNormConfig(epsilon), residual_init(layers)
    mixer = LatentAttentionConfig(
        heads,
        query_rank,
        rank,
        head_dim,
        rotary_dim,
        value_dim,
        position=rope,
        sharpening=sharpening,
        out_init=out_init,
    )
    block = BlockConfig(mixer, GLUConfig(hidden, out_init=out_init), norm)
    return decoder((block,) * layers, width, vocab_size, max_length, norm, head=head_config(tied))


SIZES = {
    "youtu-llm-2b": lambda: deepseek(
        32, 16, 2048, 6144, vocab_size=128_256, max_length=131_072, rope=RoPEConfig(1.6e6), tied=True
    ),
}

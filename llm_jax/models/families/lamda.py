"""LaMDA (Thoppilan et al. 2022, arXiv:2201.08239, section 3 and the appendix's table of sizes): a decoder with T5's
relative biases and gated ffn. Its weights were never published: only counts can be compared.

What the paper leaves unsaid is as in T5 (Raffel et al. 2020, arXiv:1910.10683, 2.1): norms without mean and bias before
each half of a block, no biases, the embedding's table for the scores. The paper gives the width of the ffn for the
largest model alone, eight times the model's; the others have it so here.
"""

from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.mixers.attention import AttentionConfig
from llm_jax.layers.mixers.scores import ScoresConfig
from llm_jax.layers.norms import RMSNormConfig
from llm_jax.layers.positions.relative_bias import RelativeBiasConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import decoder, residual_init


def lamda(
    layers: int,
    heads: int,
    width: int,
    head_dim: int = 128,
    hidden: int | None = None,
    vocab_size: int = 32_000,
    max_length: int = 2048,
    bias: RelativeBiasConfig = RelativeBiasConfig(),  # noqa: B008
) -> TransformerConfig:
    """A LaMDA of any size; `hidden` None means eight times the width.

    Args:
      max_length: of a row; the paper names none, and positions set none.
      bias: of scores by relative place, one table for all layers.
    """
    norm, out_init = RMSNormConfig(), residual_init(layers)
    mixer = AttentionConfig(heads, head_dim, heads, scores=ScoresConfig(bias=bias), out_init=out_init)
    ffn = GLUConfig(hidden or 8 * width, activation="gelu_tanh", out_init=out_init)
    return decoder((BlockConfig(mixer, ffn, norm),) * layers, width, vocab_size, max_length, norm)


SIZES = {
    "lamda-2b": lambda: lamda(10, 40, 2560),
    "lamda-8b": lambda: lamda(16, 64, 4096),
    "lamda-137b": lambda: lamda(64, 128, 8192),
}

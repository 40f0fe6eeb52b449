"""LaMDA (Thoppilan et al. 2022, arXiv:2201.08239, section 3 and the appendix's table of sizes): a decoder with T5's
relative biases and gated ffn. Its weights are not published: only parameter counts can be compared.

Details that the paper does not state are as in T5 (Raffel et al. 2020, arXiv:1910.10683, 2.1): norms without mean and
bias before each half of a block, no biases, the embedding's table for the scores. The paper gives the width of the ffn
for the largest model only, eight times the model width; here the others have the same ratio.

Initialisation: the paper states none. As in the code of GShard (github.com/tensorflow/lingvo,
lingvo/core/gshard_builder.py): Gaussian of variance 1 / fan-in in attention, where the code has the scale of scores in
its queries and this model in its scores; in ffn uniform of variance 1 / fan-in; relative position biases N(0, 1 /
sqrt(heads buckets)); token embeddings N(0, 1), and logits scaled by 1 / sqrt(width).
"""

import dataclasses

from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.initialisers import FanIn, Normal, UniformFanIn
from llm_jax.layers.norms import RMSNormConfig
from llm_jax.layers.positions.relative_bias import RelativeBiasConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import decoder
from llm_jax.models.heads import TiedHead


def lamda(
    layers: int,
    heads: int,
    width: int,
    *,
    head_dim: int = 128,
    hidden: int | None = None,
    vocab_size: int = 32_000,
    max_length: int = 2048,
    bias: RelativeBiasConfig | None = None,
) -> TransformerConfig:
    """A LaMDA of any size; `hidden` None means eight times the width.

    Args:
      max_length: maximum sequence length; the paper states none, and relative positions need none.
      bias: relative position bias of the scores, shared by all layers; None: with T5's buckets.
    """
    norm, init, bias = RMSNormConfig(), UniformFanIn(), distance_bias(heads) if bias is None else bias
    scores = ScoresConfig(bias=bias)
    mixer = AttentionConfig(heads, head_dim, heads, scores=scores, init=FanIn(), out_init=FanIn())
    ffn = GLUConfig(hidden or 8 * width, activation="gelu_tanh", init=init, out_init=init)
    embed, head = EmbedConfig(Normal(1.0)), TiedHead(scale=width**-0.5)
    return decoder((BlockConfig(mixer, ffn, norm),) * layers, width, vocab_size, max_length, norm, embed, head)


def distance_bias(heads: int) -> RelativeBiasConfig:
    """T5's relative position bias, with the initial values of GShard's code."""
    plain = RelativeBiasConfig()
    return dataclasses.replace(plain, init=distance_init(heads, plain.buckets))


def distance_init(heads: int, buckets: int) -> Normal:
    """Initialiser of relative position biases in GShard's code."""
    return Normal((heads * buckets) ** -0.5)


SIZES = {
    "lamda-2b": lambda: lamda(10, 40, 2560),
    "lamda-8b": lambda: lamda(16, 64, 4096),
    "lamda-137b": lambda: lamda(64, 128, 8192),
}

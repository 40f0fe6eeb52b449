"""T5 (Raffel et al. 2020, arXiv:1910.10683, 2.1), and T5 1.1 with a gated ffn (Shazeer 2020, arXiv:2002.05202) and an
untied head, which mT5 is on more tokens (Xue et al. 2021, arXiv:2010.11934, 3.2). UMT5 (Chung et al. 2023,
arXiv:2304.09151) is a T5 1.1 whose layers have relative position biases of their own.

Initialisation: that of Mesh TensorFlow, which trained it (github.com/tensorflow/mesh, files of mesh_tensorflow);
Gaussian of variance 1 / fan-in in attention, smaller by 1 / sqrt(head size) for queries, which takes the place of the
scale of scores (transformer/attention.py: `init_weights`); the same truncated at two standard deviations in the ffn and
in an untied head (layers.py: `VarianceScalingInitializer`); token embeddings N(0, 1) (layers.py: `embedding_weights`);
relative position biases Glorot uniform, TensorFlow's default (transformer/transformer_layers.py: `compute_bias`).

Dropout of the sizes of T5: 0.1 (Raffel et al. 2020, 3.1.1), in pre-training as in fine-tuning, of the embedding, of
branch outputs, of the attention weights, inside the ffn and after the final norms (2.1). T5 1.1 was trained without and
is to be fine-tuned with it (github.com/google-research/text-to-text-transfer-transformer, released_checkpoints.md).
"""

import dataclasses
from typing import Any

from llm_jax.layers.activations import Activation
from llm_jax.layers.attention.attention import AttentionConfig, CrossAttentionConfig
from llm_jax.layers.attention.masks import Bidirectional, Causal
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.mlp import GLUConfig, MLPConfig
from llm_jax.layers.initialisers import FanIn, Init, Normal, UniformGlorot
from llm_jax.layers.norms import RMSNormConfig
from llm_jax.layers.positions.relative_bias import LayerRelativeBiasConfig, RelativeBiasConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import EncoderDecoderConfig, TransformerConfig
from llm_jax.models.dropout import Rates, with_dropout
from llm_jax.models.heads import HeadConfig, TiedHead
from llm_jax.models.stack import Segment


def t5(
    layers: int,
    heads: int,
    width: int,
    *,
    hidden: int,
    head_dim: int = 64,
    vocab_size: int = 32128,
    max_length: int = 512,
    decoder_layers: int | None = None,
    activation: Activation = "relu",
    gated: bool = False,
    tied: bool = True,
    buckets: int = 32,
    max_distance: int = 128,
    epsilon: float = 1e-6,
    dropout: float = 0.0,
    distances: type[RelativeBiasConfig] = RelativeBiasConfig,
    attention_init: FanIn = FanIn(),  # noqa: B008
    distance_init: Init = UniformGlorot(),  # noqa: B008
    dense_init: Init = FanIn(cut=2.0),  # noqa: B008
) -> EncoderDecoderConfig:
    """A T5 of any size: pre-norm, no bias parameters, unscaled scores with learned relative position biases.

    Args:
      decoder_layers: None: as many as encoder layers.
      tied: whether the head is tied, with hidden states scaled by one over the square root of the width.
      distances: type of the relative position biases; that of UMT5 has a table for each layer.
      attention_init: initialiser of the matrices of attention; that of queries is scaled.
      distance_init: initialiser of the relative position biases.
      dense_init: initialiser of the ffn, and of an untied head.
    """
    norm = RMSNormConfig(epsilon)
    # The scale 1 / sqrt(head size) is in the initial weights of queries instead of the scores.
    query_init = dataclasses.replace(attention_init, gain=attention_init.gain * head_dim**-0.5)
    ffn = (GLUConfig if gated else MLPConfig)(hidden, activation, bias=False, init=dense_init, out_init=dense_init)

    init, out_init = attention_init, attention_init

    def attention(bidirectional: bool) -> AttentionConfig:
        bias = distances(buckets, max_distance, bidirectional, distance_init)
        mask, scores = Bidirectional() if bidirectional else Causal(), ScoresConfig(1.0, bias=bias)
        return AttentionConfig(
            *(heads, head_dim, heads, mask), scores=scores, init=init, query_init=query_init, out_init=out_init
        )

    cross = CrossAttentionConfig(
        *(heads, head_dim, heads), scores=ScoresConfig(1.0), init=init, query_init=query_init, out_init=out_init
    )
    reads = BlockConfig(attention(True), ffn, norm, dropout=dropout)
    writes = BlockConfig(attention(False), ffn, norm, dropout=dropout, cross=cross)
    embed = EmbedConfig(Normal(1.0), dropout=dropout)
    head = TiedHead(scale=width**-0.5) if tied else HeadConfig(dense_init)
    decoder = (Segment((writes,), decoder_layers or layers),)
    return EncoderDecoderConfig(
        TransformerConfig(None, width, max_length, (Segment((reads,), layers),), norm, embed, None),
        TransformerConfig(vocab_size, width, max_length, decoder, norm, embed, head),
    )


def t5_1_1(layers: int, heads: int, width: int, *, hidden: int, **options: Any) -> EncoderDecoderConfig:
    """A T5 1.1; other options are those of `t5`."""
    own: dict[str, Any] = {"activation": "gelu_tanh", "gated": True, "tied": False}
    return t5(layers, heads, width, hidden=hidden, **own, **options)


def umt5(layers: int, heads: int, width: int, *, hidden: int, vocab_size: int = 256_384) -> EncoderDecoderConfig:
    """A UMT5."""
    return t5_1_1(layers, heads, width, hidden=hidden, vocab_size=vocab_size, distances=LayerRelativeBiasConfig)


_RATES = Rates(embed=0.1, residual=0.1, attention=0.1, ffn=0.1, final=0.1)

SIZES = {
    "t5-small": lambda: with_dropout(t5(6, 8, 512, hidden=2048), _RATES),
    "t5-base": lambda: with_dropout(t5(12, 12, 768, hidden=3072), _RATES),
    "t5-large": lambda: with_dropout(t5(24, 16, 1024, hidden=4096), _RATES),
    "t5-3b": lambda: with_dropout(t5(24, 32, 1024, hidden=16384, head_dim=128), _RATES),
    "t5-11b": lambda: with_dropout(t5(24, 128, 1024, hidden=65536, head_dim=128), _RATES),
    "t5-v1.1-small": lambda: t5_1_1(8, 6, 512, hidden=1024),
    "t5-v1.1-base": lambda: t5_1_1(12, 12, 768, hidden=2048),
    "t5-v1.1-large": lambda: t5_1_1(24, 16, 1024, hidden=2816),
    "t5-v1.1-xl": lambda: t5_1_1(24, 32, 2048, hidden=5120),
    "t5-v1.1-xxl": lambda: t5_1_1(24, 64, 4096, hidden=10240),
    "mt5-small": lambda: t5_1_1(8, 6, 512, hidden=1024, vocab_size=250_112),
    "mt5-base": lambda: t5_1_1(12, 12, 768, hidden=2048, vocab_size=250_112),
    "mt5-large": lambda: t5_1_1(24, 16, 1024, hidden=2816, vocab_size=250_112),
    "umt5-small": lambda: umt5(8, 6, 512, hidden=1024),
    "umt5-base": lambda: umt5(12, 12, 768, hidden=2048),
    "umt5-xxl": lambda: umt5(24, 64, 4096, hidden=10240),
}

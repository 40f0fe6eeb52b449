"""The 2017 Transformer (Vaswani et al. 2017, arXiv:1706.03762, table 3) and BART (Lewis et al. 2020, arXiv:1910.13461,
2): post-norm encoder and decoder with a shared embedding table; the former with sinusoidal, the latter with learned
positions. PEGASUS (Zhang et al. 2020, arXiv:1912.08777, 2) and mBART (Liu et al. 2020, arXiv:2001.08210, 2.2) are
pre-norm variants.

Initialisation: of the 2017 Transformer Glorot uniform for matrices (github.com/tensorflow/tensor2tensor,
models/transformer.py: `transformer_base_v1`, and utils/optimize.py: "uniform_unit_scaling"), N(0, 1 / sqrt(width)) for
token embeddings (layers/modalities.py: `get_weights`); of BART N(0, 0.02) for all matrices and tables
(github.com/facebookresearch/fairseq, fairseq/models/bart/model.py, which applies `init_bert_params` of
fairseq/modules/transformer_sentence_encoder.py). Biases 0.

Dropout of the sizes: of the embedding and of branch outputs, 0.1 and in the big Transformer 0.3 (Vaswani et al. 2017,
5.4 and table 3), 0.1 in BART (`bart_large_architecture` of fairseq/models/bart/model.py, which drops neither attention
weights nor inside the ffn). BART's last tenth of training without dropout (its section 5.1) is left out.
"""

import math

from llm_jax.core.checks import check_divides
from llm_jax.layers.activations import Activation
from llm_jax.layers.attention.attention import AttentionConfig, CrossAttentionConfig
from llm_jax.layers.attention.masks import Bidirectional
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.initialisers import FanIn, Init, Normal, UniformGlorot
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.learned import LearnedPositionsConfig
from llm_jax.layers.positions.sinusoidal import SinusoidalConfig
from llm_jax.models.block import BlockConfig, Serial
from llm_jax.models.config import EncoderDecoderConfig, TransformerConfig
from llm_jax.models.dropout import Rates, with_dropout
from llm_jax.models.heads import TiedHead
from llm_jax.models.stack import Segment


def original(
    layers: int,
    heads: int,
    width: int,
    *,
    vocab_size: int = 37000,
    max_length: int = 1024,
    hidden: int | None = None,
    activation: Activation = "relu",
    scaled: bool = True,
    bias: bool = False,
    decoder_layers: int | None = None,
    dropout: float = 0.0,
    pre_norm: bool = False,
) -> EncoderDecoderConfig:
    """The 2017 Transformer of any size.

    Args:
      hidden: width of the ffn; None: four times the model width.
      scaled: whether token embeddings are scaled by the square root of the width.
      bias: whether the logits have a bias.
      decoder_layers: None: as many as encoder layers.
      pre_norm: whether blocks are pre-norm, with a final norm in both stacks, instead of post-norm.
    """
    scale = math.sqrt(width) if scaled else 1.0
    embed = EmbedConfig(FanIn(), SinusoidalConfig(), scale=scale, dropout=dropout)
    depths = (layers, decoder_layers or layers)
    return _pair(
        depths,
        heads,
        width,
        vocab_size,
        max_length,
        hidden,
        activation,
        embed,
        bias,
        dropout,
        UniformGlorot(),
        pre_norm,
    )


def bart(
    layers: int,
    heads: int,
    width: int,
    *,
    vocab_size: int = 50265,
    max_length: int = 1024,
    hidden: int | None = None,
    activation: Activation = "gelu",
    scaled: bool = False,
    decoder_layers: int | None = None,
    dropout: float = 0.0,
    pre_norm: bool = False,
) -> EncoderDecoderConfig:
    """A BART of any size; arguments as for `original`. Position 0 is row 2 of its table."""
    scale, position = math.sqrt(width) if scaled else 1.0, LearnedPositionsConfig(offset=2)
    embed = EmbedConfig(position=position, scale=scale, norm=LayerNormConfig(), dropout=dropout)
    depths = (layers, decoder_layers or layers)
    return _pair(
        depths, heads, width, vocab_size, max_length, hidden, activation, embed, True, dropout, Normal(), pre_norm
    )


def _pair(
    layers: tuple[int, int],
    heads: int,
    width: int,
    vocab_size: int,
    max_length: int,
    hidden: int | None,
    activation: Activation,
    embed: EmbedConfig,
    bias: bool,
    dropout: float,
    init: Init,
    pre_norm: bool,
) -> EncoderDecoderConfig:
    """Encoder and decoder with `layers` layers each."""
    check_divides(heads, width, "heads", "width")
    shape, inits = (heads, width // heads, heads), {"bias": True, "init": init, "out_init": init}
    ffn, norm = MLPConfig(hidden or 4 * width, activation, init=init, out_init=init), LayerNormConfig()
    wiring = Serial() if pre_norm else Serial(before=False, stream=True)
    reads = BlockConfig(AttentionConfig(*shape, mask=Bidirectional(), **inits), ffn, norm, wiring, dropout)
    cross = CrossAttentionConfig(*shape, **inits)
    writes = BlockConfig(AttentionConfig(*shape, **inits), ffn, norm, wiring, dropout, cross)
    stacks = ((None, reads, layers[0], None), (vocab_size, writes, layers[1], TiedHead(bias=bias)))
    return EncoderDecoderConfig(
        *(
            TransformerConfig(
                tokens, width, max_length, (Segment((block,), depth),), norm if pre_norm else None, embed, head
            )
            for tokens, block, depth, head in stacks
        )
    )


def _residual(rate: float) -> Rates:
    return Rates(embed=rate, residual=rate)


def _pegasus() -> EncoderDecoderConfig:
    """Size of `google/pegasus-large` (section 6, table 1 of its paper)."""
    return original(16, 16, 1024, vocab_size=96103, bias=True, pre_norm=True)


SIZES = {
    "transformer-base": lambda: with_dropout(original(6, 8, 512), _residual(0.1)),
    "transformer-big": lambda: with_dropout(original(6, 16, 1024), _residual(0.3)),
    "bart-base": lambda: with_dropout(bart(6, 12, 768), _residual(0.1)),
    "pegasus-large": lambda: with_dropout(_pegasus(), _residual(0.1)),
    "mbart-large": lambda: with_dropout(
        bart(12, 16, 1024, vocab_size=250_027, scaled=True, pre_norm=True), _residual(0.1)
    ),
    "bart-large": lambda: with_dropout(bart(12, 16, 1024), _residual(0.1)),
}

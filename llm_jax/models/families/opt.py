"""OPT (Zhang et al. 2022, arXiv:2205.01068, table 1): GPT-3's shapes, all layers dense, relu.

Initialisation: N(0, 0.006), smaller by 1 / sqrt(2 layers) for matrices that write to the residual stream, biases 0
(section 2.2), token embeddings and positions included (github.com/facebookresearch/metaseq, files of metaseq:
launcher/opt_baselines.py, models/transformer_lm.py: `build_embedding`, modules/positional_embedding.py and
modules/transformer_decoder_layer.py).

Dropout of the sizes: 0.1 of branch outputs and of the attention weights, none of the embedding (section 2.2;
launcher/opt_baselines.py).
"""

from llm_jax.core.checks import check_divides
from llm_jax.layers.activations import Activation
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.embed import EmbedConfig, FactorizedConfig
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.initialisers import Normal
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.learned import LearnedPositionsConfig
from llm_jax.models.block import BlockConfig, Serial
from llm_jax.models.config import TransformerConfig
from llm_jax.models.dropout import Rates, with_dropout
from llm_jax.models.families.decoder import decoder, residual_init
from llm_jax.models.heads import TiedHead, TransformConfig


def opt(
    layers: int,
    heads: int,
    width: int,
    *,
    vocab_size: int = 50272,
    max_length: int = 2048,
    hidden: int | None = None,
    activation: Activation = "relu",
    bias: bool = True,
    embed_width: int | None = None,
    post_norm: bool = False,
) -> TransformerConfig:
    """An OPT of any size; `hidden` None means four times the width. Position 0 is row 2 of its table.

    Args:
      embed_width: width of an embedding table narrower than the model, with projections from it and back to it.
      post_norm: whether blocks are post-norm; only those of the 350M are, which also has a narrower table.
    """
    check_divides(heads, width, "heads", "width")
    norm, init, out_init = LayerNormConfig(), Normal(0.006), residual_init(layers, 0.006)
    mixer = AttentionConfig(heads, width // heads, heads, bias=bias, init=init, out_init=out_init)
    ffn = MLPConfig(hidden or 4 * width, activation=activation, bias=bias, init=init, out_init=out_init)
    block = BlockConfig(mixer, ffn, norm, Serial(before=not post_norm, stream=post_norm))
    narrow, head = None, TiedHead()
    if embed_width not in (None, width):
        narrow = FactorizedConfig(embed_width, of="tokens", bias=False, init=init)
        head = TiedHead(transform=TransformConfig(activation=None, bias=False, init=init))
    embed = EmbedConfig(init, LearnedPositionsConfig(init, offset=2), factorized=narrow)
    return decoder((block,) * layers, width, vocab_size, max_length, None if post_norm else norm, embed, head)


_RATES = Rates(residual=0.1, attention=0.1)

SIZES = {
    "opt-125m": lambda: with_dropout(opt(12, 12, 768), _RATES),
    "opt-350m": lambda: with_dropout(opt(24, 16, 1024, embed_width=512, post_norm=True), _RATES),
    "opt-1.3b": lambda: with_dropout(opt(24, 32, 2048), _RATES),
    "opt-2.7b": lambda: with_dropout(opt(32, 32, 2560), _RATES),
    "opt-6.7b": lambda: with_dropout(opt(32, 32, 4096), _RATES),
    "opt-13b": lambda: with_dropout(opt(40, 40, 5120), _RATES),
    "opt-30b": lambda: with_dropout(opt(48, 56, 7168), _RATES),
    "opt-66b": lambda: with_dropout(opt(64, 72, 9216), _RATES),
    "opt-175b": lambda: with_dropout(opt(96, 96, 12288), _RATES),
}

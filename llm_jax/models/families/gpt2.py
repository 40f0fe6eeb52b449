"""GPT-2 (Radford et al. 2019, 'Language Models are Unsupervised Multitask Learners', section 2.3 and table 2) and GPT-3
(Brown et al. 2020, arXiv:2005.14165, table 2.1).

Initialisation: matrices and token embeddings N(0, 0.02), positions N(0, 0.01), biases 0 (github.com/openai/gpt-2,
src/model.py); matrices that write to the residual stream smaller by 1 / sqrt(2 layers) (section 2.3, which says 1 /
sqrt(N) for N residual layers, read as two of each block; the code above leaves it out). GPT-3 has the same (its section
2.1).

Dropout of the sizes of GPT-2: 0.1 of the embedding, of branch outputs and of the attention weights (config.json of the
published checkpoints). GPT-3's sizes have none.
"""

from llm_jax.core.checks import check_divides
from llm_jax.layers.activations import Activation
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.attention.masks import Causal
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.initialisers import Normal
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.learned import LearnedPositionsConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.dropout import Rates, with_dropout
from llm_jax.models.families.decoder import decoder, residual_init


def gpt2(
    layers: int,
    heads: int,
    width: int,
    *,
    vocab_size: int = 50257,
    max_length: int = 1024,
    bias: bool = True,
    dropout: float = 0.0,
    hidden: int | None = None,
    activation: Activation = "gelu_tanh",
    epsilon: float = 1e-5,
    windows: tuple[int | None, ...] = (None,),
) -> TransformerConfig:
    """A GPT-2 of any size. The initial weights that write to the residual stream are smaller by 1 / sqrt(2 layers).

    Args:
      hidden: width of the ffn; None: four times the model width.
      windows: attention windows of the layers, in turn; None: no window.
    """
    check_divides(heads, width, "heads", "width")
    norm, out_init = LayerNormConfig(epsilon, bias=bias), residual_init(layers)
    ffn = MLPConfig(hidden or 4 * width, activation=activation, bias=bias, out_init=out_init)

    def block(window: int | None) -> BlockConfig:
        mixer = AttentionConfig(heads, width // heads, heads, Causal(window), bias=bias, out_init=out_init)
        return BlockConfig(mixer, ffn, norm, dropout=dropout)

    blocks = tuple(block(windows[layer % len(windows)]) for layer in range(layers))
    embed = EmbedConfig(position=LearnedPositionsConfig(Normal(0.01)), dropout=dropout)
    return decoder(blocks, width, vocab_size, max_length, norm, embed)


def gpt3(layers: int, heads: int, width: int, *, window: int = 256) -> TransformerConfig:
    """A GPT-3 of any size: dense and locally banded layers alternate. The paper does not state the width of the
    bands."""
    return gpt2(layers, heads, width, max_length=2048, windows=(None, window))


_RATES = Rates(embed=0.1, residual=0.1, attention=0.1)

SIZES = {
    "gpt2": lambda: with_dropout(gpt2(12, 12, 768), _RATES),
    "gpt2-medium": lambda: with_dropout(gpt2(24, 16, 1024), _RATES),
    "gpt2-large": lambda: with_dropout(gpt2(36, 20, 1280), _RATES),
    "gpt2-xl": lambda: with_dropout(gpt2(48, 25, 1600), _RATES),
    "gpt3-small": lambda: gpt3(12, 12, 768),
    "gpt3-medium": lambda: gpt3(24, 16, 1024),
    "gpt3-large": lambda: gpt3(24, 16, 1536),
    "gpt3-xl": lambda: gpt3(24, 16, 2048),
    "gpt3-2.7b": lambda: gpt3(32, 32, 2560),
    "gpt3-6.7b": lambda: gpt3(32, 32, 4096),
    "gpt3-13b": lambda: gpt3(40, 40, 5120),
    "gpt3-175b": lambda: gpt3(96, 96, 12288),
}

"""GPT-Neo (Black et al. 2021, doi:10.5281/zenodo.5297715): GPT-2 with a window in every other layer, unscaled
attention scores, and no biases on queries, keys and values.

Initialisation: that of gpt2.py; that of github.com/EleutherAI/gpt-neo is not reproduced.
"""

from llm_jax.core.checks import check_divides
from llm_jax.layers.activations import Activation
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.attention.masks import Causal
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.initialisers import Normal
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.learned import LearnedPositionsConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import decoder, residual_init


def gpt_neo(
    layers: int,
    heads: int,
    width: int,
    *,
    vocab_size: int = 50257,
    max_length: int = 2048,
    hidden: int | None = None,
    windows: tuple[int | None, ...] = (None, 256),
    activation: Activation = "gelu_tanh",
    epsilon: float = 1e-5,
) -> TransformerConfig:
    """A GPT-Neo of any size.

    Args:
      hidden: width of the ffn; None: four times the model width.
      windows: attention windows of the layers, in turn; None: no window.
    """
    check_divides(heads, width, "heads", "width")
    norm, out_init, scores = LayerNormConfig(epsilon), residual_init(layers), ScoresConfig(1.0)
    ffn, size = MLPConfig(hidden or 4 * width, activation=activation, out_init=out_init), width // heads

    def block(window: int | None) -> BlockConfig:
        mixer = AttentionConfig(heads, size, heads, Causal(window), scores=scores, out_bias=True, out_init=out_init)
        return BlockConfig(mixer, ffn, norm)

    blocks = tuple(block(windows[layer % len(windows)]) for layer in range(layers))
    embed = EmbedConfig(position=LearnedPositionsConfig(Normal(0.01)))
    return decoder(blocks, width, vocab_size, max_length, norm, embed)


SIZES = {
    "gpt-neo-125m": lambda: gpt_neo(12, 12, 768),
    "gpt-neo-1.3b": lambda: gpt_neo(24, 16, 2048),
    "gpt-neo-2.7b": lambda: gpt_neo(32, 20, 2560),
}

"""BLOOM (BigScience 2022, arXiv:2211.05100, table 3) and MPT (MosaicML 2023, mosaicml.com/blog/mpt-7b): ALiBi instead
of position embeddings. BLOOM has a norm after the embedding; MPT has no bias parameters.

Initialisation: BLOOM N(0, 0.0048) at every size, smaller by 1 / sqrt(2 layers) for matrices that write to the residual
stream (github.com/bigscience-workshop/bigscience, `--init-method-std` in the files of train/tr11-176B-ml, whose
README.md has 0.0048 as 1 / sqrt(3 width) of the largest, and train/lessons-learned.md). MPT Gaussian of variance 2 /
fan-in (He et al. 2015, arXiv:1502.01852), token embeddings by the width, smaller by 1 / sqrt(2 layers) for matrices
that write to the residual stream (`init_config` of its config.json; github.com/mosaicml/llm-foundry,
llmfoundry/models/utils/config_defaults.py and param_init_fns.py). Biases 0.
"""

import math

from llm_jax.core.checks import check_divides
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.initialisers import FanIn, Normal
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
    *,
    vocab_size: int = 250_880,
    max_length: int = 2048,
    epsilon: float = 1e-5,
    tied: bool = True,
) -> TransformerConfig:
    """A BLOOM of any size."""
    check_divides(heads, width, "heads", "width")
    norm, init, out_init = LayerNormConfig(epsilon), Normal(0.0048), residual_init(layers, 0.0048)
    mixer = AttentionConfig(heads, width // heads, heads, scores=_ALIBI, bias=True, init=init, out_init=out_init)
    ffn = MLPConfig(4 * width, activation="gelu_tanh", init=init, out_init=out_init)
    blocks, head = (BlockConfig(mixer, ffn, norm),) * layers, head_config(tied, init)
    return decoder(blocks, width, vocab_size, max_length, norm, EmbedConfig(init, norm=norm), head)


def mpt(
    layers: int,
    heads: int,
    width: int,
    *,
    vocab_size: int = 50432,
    max_length: int = 2048,
    epsilon: float = 1e-5,
    scale: float | None = None,
    tied: bool = True,
) -> TransformerConfig:
    """An MPT of any size; `scale` None means 1 / sqrt(head size)."""
    check_divides(heads, width, "heads", "width")
    norm, init, out_init = LayerNormConfig(epsilon, bias=False), FanIn(math.sqrt(2)), FanIn(1 / math.sqrt(layers))
    scores = ScoresConfig(scale, bias=ALiBiConfig())
    mixer = AttentionConfig(heads, width // heads, heads, scores=scores, init=init, out_init=out_init)
    ffn = MLPConfig(4 * width, activation="gelu", bias=False, init=init, out_init=out_init)
    blocks, head = (BlockConfig(mixer, ffn, norm),) * layers, head_config(tied, init)
    return decoder(blocks, width, vocab_size, max_length, norm, EmbedConfig(init), head)


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

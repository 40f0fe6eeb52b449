"""RecurrentGemma (Botev et al. 2024, arXiv:2404.07839, table 1), which is Griffin (De et al. 2024, arXiv:2402.19427).

Two recurrent blocks, then one of local multi-query attention, repeated; gated ffns with biases, norms and token
embeddings as in Gemma. Sequences may have any length: its memory is the attention window and a state of fixed size.

Initialisation: Gaussian of variance 1 / fan-in for matrices, gates and token embeddings, 2 / (layers fan-in) for
matrices that write to the residual stream, 0.01 / taps for convolutions; biases 0; decays as in `RGLRUConfig`
(github.com/google-deepmind/recurrentgemma, recurrentgemma/torch/layers.py and modules.py; recurrentgemma/jax/layers.py
counts all blocks of a gate, and both matrices into an ffn, as one fan-in).
"""

import math
from typing import Literal

import jax.numpy as jnp
import numpy as np

from llm_jax.core.checks import check, check_divides, check_one_of
from llm_jax.layers.activations import Activation
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.attention.masks import Causal
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.initialisers import FanIn
from llm_jax.layers.norms import RMSNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.layers.recurrent.convolution import ConvolutionConfig
from llm_jax.layers.recurrent.rg_lru import RGLRUConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TiedHead, TransformerConfig
from llm_jax.models.families.decoder import decoder

Kind = Literal["recurrent", "attention"]

PATTERN: tuple[Kind, ...] = ("recurrent", "recurrent", "attention")


def recurrent_gemma(
    layers: int,
    heads: int,
    width: int,
    *,
    hidden: int,
    kv_heads: int = 1,
    channels: int | None = None,
    vocab_size: int = 256_000,
    max_length: int = 8192,
    window: int = 2048,
    pattern: tuple[Kind, ...] = PATTERN,
    taps: int = 4,
    rope: RoPEConfig | None = None,
    softcap: float = 30.0,
    activation: Activation = "gelu_tanh",
    epsilon: float = 1e-6,
    bias: bool = False,
) -> TransformerConfig:
    """A RecurrentGemma of any size.

    Args:
      heads: number of attention heads, and of blocks of the recurrence's gates.
      channels: channels of the recurrence; None: the width.
      max_length: no effect on the model.
      pattern: mixers of the layers, in turn.
      rope: None: half of each head is rotated.
      bias: whether queries, keys and values have biases; all other projections have.
    """
    check_divides(heads, width, "heads", "width")
    check(len(pattern) > 0, "pattern is empty: at least one mixer is required")
    for kind in pattern:
        check_one_of("pattern", kind, ("recurrent", "attention"))
    head_dim, norm, out_init = width // heads, RMSNormConfig(epsilon, from_zero=True), FanIn(math.sqrt(2 / layers))
    ffn = GLUConfig(hidden, activation, bias=True, init=FanIn(), out_init=out_init)
    # The published code initialises convolution kernels with a standard deviation of 0.05 for 4 taps.
    recurrent = RGLRUConfig(
        channels or width, heads, ConvolutionConfig(taps, init=FanIn(0.1)), activation, out_init=out_init
    )
    attention = AttentionConfig(
        heads,
        head_dim,
        kv_heads,
        Causal(window),
        RoPEConfig(features=head_dim // 2) if rope is None else rope,
        bias=bias,
        out_bias=True,
        init=FanIn(),
        out_init=out_init,
    )
    mixers = {"recurrent": recurrent, "attention": attention}
    blocks = tuple(BlockConfig(mixers[pattern[layer % len(pattern)]], ffn, norm) for layer in range(layers))
    embed = EmbedConfig(FanIn(), scale=_rounded(math.sqrt(width)))
    return decoder(blocks, width, vocab_size, max_length, norm, embed, TiedHead(softcap))


def _rounded(number: float) -> float:
    """The nearest bfloat16: the published code stores the scale of token embeddings in bfloat16 in any precision."""
    return float(np.asarray(number).astype(jnp.bfloat16))


SIZES = {
    "recurrentgemma-2b": lambda: recurrent_gemma(26, 10, 2560, hidden=7680),
    "recurrentgemma-9b": lambda: recurrent_gemma(38, 16, 4096, hidden=12288),
}

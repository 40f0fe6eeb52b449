"""Mamba-2 (Dao and Gu 2024, arXiv:2405.21060, section 9.1; sizes are those of the checkpoints).

Initialisation: token embeddings N(0, 0.02); matrices, convolutions and their biases uniform between -1 / sqrt(fan-in)
and 1 / sqrt(fan-in), which are PyTorch's defaults; the output projection smaller by 1 / sqrt(layers); other biases 0
(github.com/state-spaces/mamba, mamba_ssm/models/mixer_seq_simple.py: `_init_weights`, and mamba_ssm/modules/mamba2.py).
Steps and rates: `TimeScales`.
"""

import math
from typing import Any

from llm_jax.core.checks import check_divides
from llm_jax.layers.initialisers import TORCH_DEFAULT, UniformFanIn
from llm_jax.layers.norms import RMSNormConfig
from llm_jax.layers.recurrent.convolution import ConvolutionConfig
from llm_jax.layers.recurrent.mamba2 import Mamba2Config
from llm_jax.layers.recurrent.matrix_recurrence import ChunkwiseForm, Form
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import decoder, head_config

CONVOLUTION = ConvolutionConfig(init=TORCH_DEFAULT, bias_init=TORCH_DEFAULT)


def mamba2(
    layers: int,
    width: int,
    *,
    vocab_size: int = 50288,
    max_length: int = 2048,
    epsilon: float = 1e-5,
    tied: bool = True,
    **recurrent: Any,
) -> TransformerConfig:
    """A Mamba-2 of any size: blocks with a mixer only, no ffn and no positions.

    Args:
      max_length: maximum sequence length. Pretraining used 2048 tokens; the model itself has no limit.
      recurrent: other options, of `recurrence`.
    """
    norm, mixer = RMSNormConfig(epsilon), recurrence(width, layers, epsilon=epsilon, **recurrent)
    blocks = (BlockConfig(mixer, None, norm),) * layers
    return decoder(blocks, width, vocab_size, max_length, norm, head=head_config(tied, TORCH_DEFAULT))


def recurrence(
    width: int,
    writers: int,
    *,
    heads: int | None = None,
    head_dim: int = 64,
    groups: int = 1,
    state_size: int = 128,
    convolution: ConvolutionConfig = CONVOLUTION,
    bias: bool = False,
    epsilon: float = 1e-5,
    step_limit: tuple[float, float] = (0.0, float("inf")),
    form: Form = ChunkwiseForm(),  # noqa: B008
) -> Mamba2Config:
    """The mixer of a layer.

    Args:
      writers: number of matrices of the model that write to the residual stream.
      heads: None: twice the width divided by `head_dim`.
    """
    if heads is None:
        check_divides(head_dim, 2 * width, "head_dim", "twice the width")
        heads = 2 * width // head_dim
    sizes = (heads, head_dim, groups, state_size, convolution, bias, epsilon, step_limit)
    return Mamba2Config(*sizes, init=TORCH_DEFAULT, out_init=out_init(writers), form=form)


def out_init(writers: int) -> UniformFanIn:
    """Initialiser of the matrices that write to the residual stream.

    Args:
      writers: number of these matrices in the model.
    """
    return UniformFanIn(1 / math.sqrt(3 * writers))


SIZES = {
    "mamba2-130m": lambda: mamba2(24, 768),
    "mamba2-370m": lambda: mamba2(48, 1024),
    "mamba2-780m": lambda: mamba2(48, 1536),
    "mamba2-1.3b": lambda: mamba2(48, 2048),
    "mamba2-2.7b": lambda: mamba2(64, 2560),
}

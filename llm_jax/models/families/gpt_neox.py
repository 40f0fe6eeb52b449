"""GPT-NeoX 20B (Black et al. 2022, arXiv:2204.06745, section 2) and Pythia (Biderman et al. 2023, arXiv:2304.01373,
table 1): parallel attention and ffn, each with its own norm.

Initialisation: N(0, 2 / (layers sqrt(width))) of matrices that write to the residual stream, N(0, sqrt(2 / (5 width)))
of all other matrices and of token embeddings, biases 0 (Black et al. 2022, section 2; github.com/EleutherAI/gpt-neox,
megatron/model/init_functions.py and configs/20B.yml; github.com/EleutherAI/pythia, files of models). The files of
Pythia 6.9B and 12B name none by mistake (README.md of that repository): they have GPT-NeoX's defaults, which are
GPT-2's, N(0, 0.02), smaller by 1 / sqrt(2 layers) for matrices that write to the residual stream
(megatron/neox_arguments/neox_args.py).
"""

import math

from llm_jax.core.checks import check_divides
from llm_jax.layers.activations import Activation
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.initialisers import Normal
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.block import BlockConfig, Parallel, Serial
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import decoder, head_config, residual_init


def gpt_neox(
    layers: int,
    heads: int,
    width: int,
    *,
    vocab_size: int = 50304,
    max_length: int = 2048,
    rope: RoPEConfig | None = None,
    hidden: int | None = None,
    activation: Activation = "gelu",
    epsilon: float = 1e-5,
    parallel: bool = True,
    bias: bool = True,
    tied: bool = False,
    init: Normal | None = None,
    out_init: Normal | None = None,
) -> TransformerConfig:
    """A GPT-NeoX of any size.

    Args:
      rope: None: the leading quarter of each head is rotated.
      hidden: width of the ffn; None: four times the model width.
      bias: whether the projections of attention have biases; those of the ffn always have.
      init: initialiser of matrices and token embeddings; None: as in the 20B.
      out_init: initialiser of matrices that write to the residual stream; None: as in the 20B.
    """
    check_divides(heads, width, "heads", "width")
    norm, init = LayerNormConfig(epsilon), init or Normal(math.sqrt(2 / (5 * width)))
    out_init = out_init or Normal(2 / (layers * math.sqrt(width)))
    head_dim = width // heads
    rope = RoPEConfig(features=head_dim // 4) if rope is None else rope
    mixer = AttentionConfig(heads, head_dim, heads, position=rope, bias=bias, init=init, out_init=out_init)
    ffn = MLPConfig(hidden or 4 * width, activation=activation, init=init, out_init=out_init)
    blocks = (BlockConfig(mixer, ffn, norm, Parallel(shared_norm=False) if parallel else Serial()),) * layers
    return decoder(blocks, width, vocab_size, max_length, norm, EmbedConfig(init), head_config(tied, init))


SIZES = {
    "pythia-70m": lambda: gpt_neox(6, 8, 512),
    "pythia-160m": lambda: gpt_neox(12, 12, 768),
    "pythia-410m": lambda: gpt_neox(24, 16, 1024),
    "pythia-1b": lambda: gpt_neox(16, 8, 2048),
    "pythia-1.4b": lambda: gpt_neox(24, 16, 2048),
    "pythia-2.8b": lambda: gpt_neox(32, 32, 2560),
    "pythia-6.9b": lambda: gpt_neox(32, 32, 4096, vocab_size=50432, init=Normal(), out_init=residual_init(32)),
    "pythia-12b": lambda: gpt_neox(36, 40, 5120, vocab_size=50688, init=Normal(), out_init=residual_init(36)),
    "gpt-neox-20b": lambda: gpt_neox(44, 64, 6144, vocab_size=50432, activation="gelu_tanh"),
}

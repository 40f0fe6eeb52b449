"""RetNet (Sun et al. 2023, arXiv:2307.08621, section 3.1 and table 2). Its weights are not published: only parameter
counts can be compared.

Initialisation: as in DeepNet (Sun et al. 2023, 3.1; Wang et al. 2022, arXiv:2203.00555, figure 2): Gaussian of variance
2 / (fan-in + fan-out) for queries and keys, smaller by (8 layers)^(-1/4) for values, the output projection and the ffn;
gates, which DeepNet does not have, as queries. Token embeddings N(0, 1 / sqrt(width)) (github.com/microsoft/torchscale,
torchscale/component/embedding.py). The code published there starts otherwise by default: Glorot uniform, with a gain of
2^-2.5 for queries, keys, values and gates and 1/2 for the output projection
(torchscale/component/multiscale_retention.py), and divides by (8 layers)^(1/4) only where `deepnorm` is set
(torchscale/architecture/retnet.py).
"""

from llm_jax.core.checks import check_divides
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.initialisers import FanIn, Glorot
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.recurrent.matrix_recurrence import ChunkwiseForm, Form
from llm_jax.layers.recurrent.retention import Decays, RetentionConfig, SpacedDecays
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import decoder


def retnet(
    layers: int,
    heads: int,
    width: int,
    *,
    vocab_size: int = 50257,
    max_length: int = 2048,
    decays: Decays = SpacedDecays(),  # noqa: B008
    form: Form = ChunkwiseForm(512),  # noqa: B008
) -> TransformerConfig:
    """A RetNet of any size: values twice as wide as queries and keys, ffn twice as wide as the model.

    The paper states no vocabulary. Here it is that of GPT-2, and the head is tied.
    """
    check_divides(heads, width, "heads", "width")
    norm, init, deep_init = LayerNormConfig(), Glorot(), Glorot((8 * layers) ** -0.25)
    size = width // heads
    mixer = RetentionConfig(
        heads, size, 2 * size, decays, init=init, out_init=deep_init, value_init=deep_init, form=form
    )
    ffn = MLPConfig(2 * width, activation="gelu", bias=False, init=deep_init, out_init=deep_init)
    blocks = (BlockConfig(mixer, ffn, norm),) * layers
    return decoder(blocks, width, vocab_size, max_length, norm, EmbedConfig(FanIn()))


SIZES = {
    "retnet-1.3b": lambda: retnet(24, 8, 2048),
    "retnet-2.7b": lambda: retnet(32, 10, 2560),
    "retnet-6.7b": lambda: retnet(32, 16, 4096),
}
"""Queries and keys of a head have 256 features (3.1)."""

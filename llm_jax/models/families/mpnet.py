"""MPNet (Song et al. 2020, arXiv:2004.09297, 2): a RoBERTa without token types, whose attention has T5's biases by
relative place too. It is trained by masked and permuted prediction together.

Initialisation: N(0, 0.02) for matrices and tables, biases 0 (github.com/microsoft/MPNet,
pretraining/fairseq/modules/transformer_sentence_encoder.py: `init_bert_params`).

Dropout of the sizes: 0.1 of the embedding, of branch outputs and of the attention weights, as in their config.json
files.
"""

from typing import Any

from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.initialisers import Normal
from llm_jax.layers.positions.relative_bias import RelativeBiasConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.dropout import Rates, with_dropout
from llm_jax.models.families.bert import bert

INIT = Normal(0.02)
BIAS = RelativeBiasConfig(32, 128, bidirectional=True, init=INIT)


def mpnet(layers: int, heads: int, width: int, *, vocab_size: int = 30527, **options: Any) -> TransformerConfig:
    """An MPNet of any size; other options are those of `bert`."""
    own: dict[str, Any] = {"types": 0, "offset": 2, "epsilon": 1e-5, "init": INIT, "scores": ScoresConfig(bias=BIAS)}
    return bert(layers, heads, width, vocab_size=vocab_size, **own | options)


SIZES = {
    "mpnet-base": lambda: with_dropout(mpnet(12, 12, 768), Rates(embed=0.1, residual=0.1, attention=0.1)),
}

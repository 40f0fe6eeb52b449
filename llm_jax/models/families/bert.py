"""BERT (Devlin et al. 2019, arXiv:1810.04805, 3) and derived models: post-norm encoders, which differ in objective
and data. RoBERTa (Liu et al. 2019, arXiv:1907.11692), XLM-R (Conneau et al. 2020, arXiv:1911.02116), CamemBERT
(Martin et al. 2020, arXiv:1911.03894), ELECTRA (Clark et al. 2020, arXiv:2003.10555, 3); DistilBERT (Sanh et al. 2019,
arXiv:1910.01108, 3) has half the layers.

Initialisation: N(0, 0.02) truncated at two standard deviations for matrices and tables, biases 0
(github.com/google-research/bert, modeling.py: `create_initializer`, and github.com/google-research/electra,
model/modeling.py); Glorot uniform, TensorFlow's default, for the two matrices that ELECTRA's code gives no initialiser:
that which widens its embedding (`embeddings_project` of model/modeling.py) and that of its scores (run_pretraining.py:
`_get_discriminator_output`). RoBERTa's N(0, 0.02) is not truncated (github.com/facebookresearch/fairseq,
fairseq/modules/transformer_sentence_encoder.py: `init_bert_params`).

Dropout of the sizes: 0.1 of the embedding, of branch outputs and of the attention weights (Devlin et al. 2019, A.2;
`base_architecture` of fairseq/models/roberta/model.py; `BertConfig` of ELECTRA's model/modeling.py).
"""

import dataclasses

from llm_jax.core.checks import check_divides
from llm_jax.layers.activations import Activation
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.embed import EmbedConfig, FactorizedConfig
from llm_jax.layers.initialisers import Normal, UniformGlorot
from llm_jax.models.config import GeneratorDiscriminatorConfig, TransformerConfig
from llm_jax.models.dropout import Rates, with_dropout
from llm_jax.models.families.encoder import INIT, block, embedding, masked_lm_head
from llm_jax.models.heads import AnyHead, ClassHead, TransformConfig
from llm_jax.models.stack import Segment


def bert(
    layers: int,
    heads: int,
    width: int,
    *,
    vocab_size: int = 30522,
    max_length: int = 512,
    hidden: int | None = None,
    activation: Activation = "gelu",
    epsilon: float = 1e-12,
    types: int = 2,
    offset: int = 0,
    narrow: int | None = None,
    head: AnyHead | None = None,
    dropout: float = 0.0,
    init: Normal = INIT,
    scores: ScoresConfig = ScoresConfig(),  # noqa: B008
) -> TransformerConfig:
    """A BERT of any size.

    Args:
      hidden: width of the ffn; None: four times the model width.
      types: number of token types; a sequence of BERT has two sentences, DistilBERT has no types.
      offset: table row of position 0; RoBERTa's 2.
      narrow: width of a factorized embedding (ELECTRA small); None: the model width.
      head: None: a head for masked language modelling.
      scores: of attention; those of MPNet have a bias.
    """
    check_divides(heads, width, "heads", "width")
    layer = block(heads, width, hidden or 4 * width, activation, epsilon, dropout, init, scores)
    embed = embedding(types, epsilon, offset, narrow, dropout, init, widen_init=UniformGlorot())
    head = masked_lm_head(activation, epsilon, init) if head is None else head
    return TransformerConfig(vocab_size, width, max_length, (Segment((layer,), layers),), None, embed, head)


def roberta(layers: int, heads: int, width: int, *, vocab_size: int = 50265) -> TransformerConfig:
    """A RoBERTa of any size: byte-level tokens, one token type."""
    return bert(layers, heads, width, vocab_size=vocab_size, epsilon=1e-5, types=1, offset=2, init=Normal(0.02))


def discriminator(activation: Activation = "gelu") -> ClassHead:
    """ELECTRA's head: for every token one score of being a replaced token."""
    return ClassHead(1, transform=TransformConfig(activation, init=INIT), init=UniformGlorot())


def electra(
    layers: int,
    heads: int,
    width: int,
    *,
    share: float = 0.25,
    vocab_size: int = 30522,
    max_length: int = 512,
    narrow: int | None = None,
    dropout: float = 0.0,
) -> GeneratorDiscriminatorConfig:
    """ELECTRA as it is trained: a discriminator of any size, and a generator of the same depth.

    Args:
      share: size of the generator's width, heads and ffn, as a share of the discriminator's: a quarter in the small and
        the large model, a third in the base model (table 6).
      narrow: as for `bert`.
      dropout: rate of embedding and branch outputs.
    """
    sizes = {"vocab_size": vocab_size, "max_length": max_length, "narrow": narrow, "dropout": dropout}
    found = bert(layers, heads, width, **sizes, head=discriminator())
    few, shared = max(1, round(heads * share)), found.embed.sum_width(width)
    own = max(1, round(width * share / few)) * few
    like = bert(layers, few, own, vocab_size=vocab_size, max_length=max_length, dropout=dropout)
    factorized = None if own == shared else FactorizedConfig(shared, init=UniformGlorot())
    embed = EmbedConfig(INIT, factorized=factorized)
    generator = dataclasses.replace(like, vocab_size=None, head=None, embed=embed)
    return GeneratorDiscriminatorConfig(generator, found, masked_lm_head())


_RATES = Rates(embed=0.1, residual=0.1, attention=0.1)

SIZES = {
    "bert-base": lambda: with_dropout(bert(12, 12, 768), _RATES),
    "bert-large": lambda: with_dropout(bert(24, 16, 1024), _RATES),
    "roberta-base": lambda: with_dropout(roberta(12, 12, 768), _RATES),
    "roberta-large": lambda: with_dropout(roberta(24, 16, 1024), _RATES),
    "xlm-roberta-base": lambda: with_dropout(roberta(12, 12, 768, vocab_size=250_002), _RATES),
    "xlm-roberta-large": lambda: with_dropout(roberta(24, 16, 1024, vocab_size=250_002), _RATES),
    "camembert-base": lambda: with_dropout(roberta(12, 12, 768, vocab_size=32005), _RATES),
    "distilbert-base": lambda: with_dropout(bert(6, 12, 768, types=0), _RATES),
    "electra-small": lambda: with_dropout(bert(12, 4, 256, narrow=128, head=discriminator()), _RATES),
    "electra-base": lambda: with_dropout(bert(12, 12, 768, head=discriminator()), _RATES),
    "electra-large": lambda: with_dropout(bert(24, 16, 1024, head=discriminator()), _RATES),
}

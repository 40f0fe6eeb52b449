"""What encoder families have in common: BERT's block, and its heads."""

from llm_jax.layers.activations import Activation
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.attention.masks import Bidirectional
from llm_jax.layers.embed import EmbedConfig, FactorizedConfig
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.initialisers import Init, Normal
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.learned import LearnedPositionsConfig
from llm_jax.models.block import BlockConfig, Serial
from llm_jax.models.heads import ClassHead, TiedHead, TransformConfig

INIT = Normal(0.02, cut=2.0)
"""Of all matrices and tables; biases start at 0 (`truncated_normal_initializer` in github.com/google-research/bert,
modeling.py, and in the code of ALBERT and ELECTRA)."""


def block(
    heads: int,
    width: int,
    hidden: int,
    activation: Activation = "gelu",
    epsilon: float = 1e-12,
    dropout: float = 0.0,
    init: Normal = INIT,
) -> BlockConfig:
    """Every token sees its whole document, and norms stand on the stream."""
    mixer = AttentionConfig(heads, width // heads, heads, mask=Bidirectional(), bias=True, init=init, out_init=init)
    ffn, wiring = MLPConfig(hidden, activation, init=init, out_init=init), Serial(before=False, stream=True)
    return BlockConfig(mixer, ffn, LayerNormConfig(epsilon), wiring, dropout)


def embedding(
    types: int = 2,
    epsilon: float = 1e-12,
    offset: int = 0,
    narrow: int | None = None,
    dropout: float = 0.0,
    init: Normal = INIT,
    widen_init: Init = INIT,
) -> EmbedConfig:
    """Tokens, positions and types, summed and normed.

    Args:
      offset: row of position 0 in their table.
      narrow: width of all that, where a matrix widens it; None: the model's.
      widen_init: of that matrix.
    """
    factorized = None if narrow is None else FactorizedConfig(narrow, init=widen_init)
    position, norm = LearnedPositionsConfig(init, offset), LayerNormConfig(epsilon)
    return EmbedConfig(init, position, types=types, norm=norm, dropout=dropout, factorized=factorized)


def masked_lm_head(activation: Activation = "gelu", epsilon: float = 1e-12, init: Normal = INIT) -> TiedHead:
    """Scores of the tokens that were masked."""
    return TiedHead(bias=True, transform=TransformConfig(activation, LayerNormConfig(epsilon), init=init))


def row_head(classes: int, activation: Activation = "tanh", init: Normal = INIT) -> ClassHead:
    """Scores of classes of whole rows."""
    return ClassHead(classes, "row", TransformConfig(activation, init=init), init=init)


def span_head(init: Normal = INIT) -> ClassHead:
    """Scores of where an answer starts and ends."""
    return ClassHead(2, "span", init=init)

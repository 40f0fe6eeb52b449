"""Functions shared by encoder families: BERT's block, embedding and heads."""

from llm_jax.layers.activations import Activation
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.attention.masks import Bidirectional
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.embed import EmbedConfig, FactorizedConfig
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.initialisers import Init, Normal
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.learned import LearnedPositionsConfig
from llm_jax.models.block import BlockConfig, Serial
from llm_jax.models.heads import ClassHead, TiedHead, TransformConfig

INIT = Normal(0.02, cut=2.0)
"""Initialiser of all matrices and tables; biases are initialised to 0 (`truncated_normal_initializer` in
github.com/google-research/bert, modeling.py, and in the code of ALBERT and ELECTRA)."""


def block(
    heads: int,
    width: int,
    hidden: int,
    activation: Activation = "gelu",
    epsilon: float = 1e-12,
    dropout: float = 0.0,
    init: Normal = INIT,
    scores: ScoresConfig = ScoresConfig(),  # noqa: B008
) -> BlockConfig:
    """A post-norm block with bidirectional attention."""
    sizes = (heads, width // heads, heads)
    mixer = AttentionConfig(*sizes, Bidirectional(), scores=scores, bias=True, init=init, out_init=init)
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
    """Sum of token, position and type embeddings, with a norm.

    Args:
      offset: table row of position 0.
      narrow: width of a factorized embedding; None: the model width.
      widen_init: initialiser of the projection of a factorized embedding.
    """
    factorized = None if narrow is None else FactorizedConfig(narrow, init=widen_init)
    position, norm = LearnedPositionsConfig(init, offset), LayerNormConfig(epsilon)
    return EmbedConfig(init, position, types=types, norm=norm, dropout=dropout, factorized=factorized)


def masked_lm_head(activation: Activation = "gelu", epsilon: float = 1e-12, init: Normal = INIT) -> TiedHead:
    """BERT's head for masked language modelling."""
    return TiedHead(bias=True, transform=TransformConfig(activation, LayerNormConfig(epsilon), init=init))


def sequence_head(classes: int, activation: Activation = "tanh", init: Normal = INIT) -> ClassHead:
    """Scores of classes of whole sequences."""
    return ClassHead(classes, "sequence", TransformConfig(activation, init=init), init=init)


def span_head(init: Normal = INIT) -> ClassHead:
    """Scores of the start and end of an answer span."""
    return ClassHead(2, "span", init=init)

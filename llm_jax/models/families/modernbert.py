"""ModernBERT (Warner et al. 2024, arXiv:2412.13663, 2.1): a pre-norm encoder with rotary embeddings and a gated ffn,
whose layers have a window on both sides but for every third. The embedding is normalised, and so the first block has no
norm before its attention.

Initialisation: that of its code (github.com/AnswerDotAI/ModernBERT, src/bert_layers/initialization.py:
`full_megatron`): N(0, 0.02), smaller by 1 / sqrt(2 layers) for matrices that write to the residual stream and for the
dense layer of the head; N(0, 1 / width) for scores of classes; all truncated at two standard deviations; biases 0.

Dropout of the sizes: none, as in their config.json files.
"""

import dataclasses

from llm_jax.core.checks import check, check_divides
from llm_jax.layers.activations import Activation
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.attention.masks import Bidirectional, BidirectionalWindow
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.initialisers import FanIn, Normal
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.block import BlockConfig, NormedInput
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import segments
from llm_jax.models.heads import AnyHead, ClassHead, TiedHead, TransformConfig
from llm_jax.models.stack import Segment

INIT = Normal(0.02, cut=2.0)
SCORES_INIT = FanIn(cut=2.0)
"""Initialiser of scores of classes."""


def modernbert(
    layers: int,
    heads: int,
    width: int,
    *,
    hidden: int,
    vocab_size: int = 50368,
    max_length: int = 8192,
    reach: tuple[int | None, ...] | None = None,
    rope: RoPEConfig = RoPEConfig(160_000.0),  # noqa: B008
    local_rope: RoPEConfig = RoPEConfig(),  # noqa: B008
    activation: Activation = "gelu",
    epsilon: float = 1e-5,
    norm_bias: bool = False,
    bias: bool = False,
    ffn_bias: bool = False,
    head: AnyHead | None = None,
    init: Normal = INIT,
) -> TransformerConfig:
    """A ModernBERT of any size.

    Args:
      reach: tokens on either side that a token of each layer sees; None in it: all. None: 64, and all in every third
        layer from the first on.
      rope: rotary embedding of the layers that see all; `local_rope` is that of the others.
      head: None: a head for masked language modelling.
    """
    check_divides(heads, width, "heads", "width")
    reach = tuple(64 if layer % 3 else None for layer in range(layers)) if reach is None else reach
    check(len(reach) == layers, f"reach has {len(reach)} entries and there are {layers} layers: give one a layer")
    norm, out_init = LayerNormConfig(epsilon, norm_bias), _out_init(layers, init)
    ffn = GLUConfig(hidden, activation, ffn_bias, init, out_init)

    def block(near: int | None) -> BlockConfig:
        mask, position = (Bidirectional(), rope) if near is None else (BidirectionalWindow(near), local_rope)
        sizes = (heads, width // heads, heads)
        return BlockConfig(AttentionConfig(*sizes, mask, position, bias=bias, init=init, out_init=out_init), ffn, norm)

    first, *rest = (block(near) for near in reach)
    first = dataclasses.replace(first, wiring=NormedInput())
    stack = (Segment((first,), 1), *(segments(tuple(rest)) if rest else ()))
    head = TiedHead(bias=True, transform=head_transform(layers, norm, init=init)) if head is None else head
    return TransformerConfig(vocab_size, width, max_length, stack, norm, EmbedConfig(init, norm=norm), head)


def head_transform(
    layers: int, norm: LayerNormConfig, activation: Activation = "gelu", bias: bool = False, init: Normal = INIT
) -> TransformConfig:
    """What every head does before its scores, in a model of `layers` layers."""
    return TransformConfig(activation, norm, bias, _out_init(layers, init))


def sequence_head(classes: int, transform: TransformConfig) -> ClassHead:
    """Scores of classes of whole sequences, from their first token."""
    return ClassHead(classes, "sequence", transform, init=SCORES_INIT)


def token_head(classes: int, transform: TransformConfig) -> ClassHead:
    """Scores of classes of every token."""
    return ClassHead(classes, "token", transform, init=SCORES_INIT)


def span_head(transform: TransformConfig) -> ClassHead:
    """Scores of the start and end of an answer span."""
    return ClassHead(2, "span", transform, init=SCORES_INIT)


def _out_init(layers: int, init: Normal) -> Normal:
    return dataclasses.replace(init, stddev=init.stddev / (2 * layers) ** 0.5)


SIZES = {
    "modernbert-base": lambda: modernbert(22, 12, 768, hidden=1152),
    "modernbert-large": lambda: modernbert(28, 16, 1024, hidden=2624),
}

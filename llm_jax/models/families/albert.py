"""ALBERT (Lan et al. 2020, arXiv:1909.11942, 3.1): BERT with one block for all layers and a narrow embedding.

Initialisation: as BERT's, N(0, 0.02) truncated at two standard deviations (github.com/google-research/albert,
modeling.py: `create_initializer`).

Dropout of the sizes: none, as in version 2 of the checkpoints (README.md of that repository).
"""

from llm_jax.core.checks import check_divides
from llm_jax.layers.activations import Activation
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.encoder import block, embedding, masked_lm_head
from llm_jax.models.heads import AnyHead
from llm_jax.models.stack import Segment


def albert(
    layers: int,
    heads: int,
    width: int,
    *,
    vocab_size: int = 30000,
    max_length: int = 512,
    hidden: int | None = None,
    narrow: int = 128,
    activation: Activation = "gelu_tanh",
    epsilon: float = 1e-12,
    types: int = 2,
    groups: int = 1,
    inner: int = 1,
    head: AnyHead | None = None,
    dropout: float = 0.0,
) -> TransformerConfig:
    """An ALBERT of any size.

    Args:
      hidden: width of the ffn; None: four times the model width.
      narrow: width of the embedding.
      groups: number of groups of consecutive layers that share weights.
      inner: number of blocks per layer.
      head: None: a head for masked language modelling.
    """
    check_divides(heads, width, "heads", "width")
    check_divides(groups, layers, "groups", "layers")
    layer = block(heads, width, hidden or 4 * width, activation, epsilon, dropout)
    segments = (Segment((layer,) * inner, layers // groups, shared=True),) * groups
    embed = embedding(types, epsilon, narrow=narrow, dropout=dropout)
    head = masked_lm_head(activation, epsilon) if head is None else head
    return TransformerConfig(vocab_size, width, max_length, segments, None, embed, head)


SIZES = {
    "albert-base": lambda: albert(12, 12, 768),
    "albert-large": lambda: albert(24, 16, 1024),
    "albert-xlarge": lambda: albert(24, 16, 2048),
    "albert-xxlarge": lambda: albert(12, 64, 4096),
}

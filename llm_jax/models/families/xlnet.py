"""XLNet (Yang et al. 2019, arXiv:1906.08237): a post-norm encoder trained to predict its tokens in any order.

`SequenceInfo` determines its mode. Without order and targets it is an encoder like BERT. With `order_BT` its tokens
attend only to tokens before them in that order. The query-stream tokens of `targets_BT`, placed after the others,
predict.

Initialisation: N(0, 0.02) for matrices, tables and vectors, the biases of scores included; biases of layers 0
(github.com/zihangdai/xlnet, xlnet.py: `_get_initializer`, and modeling.py).

Dropout of the sizes: 0.1 of the embedding, of branch outputs, of what the last layer gives (modeling.py of that
repository) and of the attention weights, none inside the ffn (A.4.1, table 7: "GeLU dropout"), where modeling.py has
the rate of the others. That of the encoded distances is left out.
"""

from llm_jax.core.checks import check_divides
from llm_jax.layers.activations import Activation
from llm_jax.layers.attention.relative import RelativeAttentionConfig
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.mlp import MLPConfig
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.models.block import BlockConfig, Serial
from llm_jax.models.config import TransformerConfig
from llm_jax.models.dropout import Rates, with_dropout
from llm_jax.models.heads import AnyHead, ClassHead, TiedHead, TransformConfig
from llm_jax.models.stack import Segment


def xlnet(
    layers: int,
    heads: int,
    width: int,
    *,
    vocab_size: int = 32000,
    max_length: int = 1024,
    hidden: int | None = None,
    activation: Activation = "gelu",
    epsilon: float = 1e-12,
    farthest: int | None = None,
    head: AnyHead | None = None,
    dropout: float = 0.0,
) -> TransformerConfig:
    """An XLNet of any size. It has no memory of earlier segments (3.2 of arXiv:1901.02860).

    Args:
      max_length: maximum number of tokens and targets together; it was trained on 512 tokens, but no parameter depends
        on that.
      hidden: width of the ffn; None: four times the model width.
      farthest: maximum distance, to which distances are clipped; None: no limit.
      head: None: scores of the vocabulary; at query-stream tokens those of the predicted token.
    """
    check_divides(heads, width, "heads", "width")
    mixer = RelativeAttentionConfig(heads, width // heads, farthest=farthest)
    ffn, wiring = MLPConfig(hidden or 4 * width, activation), Serial(before=False, stream=True)
    block = BlockConfig(mixer, ffn, LayerNormConfig(epsilon), wiring, dropout)
    embed, head = EmbedConfig(dropout=dropout, target=True), TiedHead(bias=True) if head is None else head
    return TransformerConfig(vocab_size, width, max_length, (Segment((block,), layers),), None, embed, head)


def last_head(classes: int) -> ClassHead:
    """Scores of classes of whole sequences from their last token; sequences are padded on the left."""
    return ClassHead(classes, "sequence", TransformConfig("tanh"), token="last")


_RATES = Rates(embed=0.1, residual=0.1, attention=0.1, final=0.1)

SIZES = {
    "xlnet-base": lambda: with_dropout(xlnet(12, 12, 768), _RATES),
    "xlnet-large": lambda: with_dropout(xlnet(24, 16, 1024), _RATES),
}

"""GLaM (Du et al. 2022, arXiv:2112.06905, section 4 and table 4): a decoder with 2 of many experts per token in every
other layer, and a gated ffn in the others. Its weights are not published: only parameter counts can be compared.

The paper gives every layer relative biases (of Dai et al. 2019, arXiv:1901.02860); here one table of T5's serves all
layers. It names a vocabulary of 256K; the counts of the smaller models are those of 32K. Details that the paper does
not state are as in T5 (Raffel et al. 2020, arXiv:1910.10683, 2.1).

Initialisation: the paper states none. As in the code of GShard (github.com/tensorflow/lingvo,
lingvo/core/gshard_builder.py): Gaussian of variance 1 / fan-in in attention, where the code has the scale of scores in
its queries and this model in its scores; in ffn, experts and routers uniform of variance 1 / fan-in; relative position
biases N(0, 1 / sqrt(heads buckets)); token embeddings N(0, 1), and logits scaled by 1 / sqrt(width).
"""

from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.balance import LoadLoss
from llm_jax.layers.ffn.dispatch import Dispatch
from llm_jax.layers.ffn.dispatch.capacity import Capacity
from llm_jax.layers.ffn.mlp import GLUConfig, MLPConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.layers.initialisers import FanIn, Normal, UniformFanIn
from llm_jax.layers.norms import RMSNormConfig
from llm_jax.layers.positions.relative_bias import RelativeBiasConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import decoder, with_experts
from llm_jax.models.families.lamda import distance_bias
from llm_jax.models.heads import TiedHead


def glam(
    layers: int,
    heads: int,
    width: int,
    *,
    experts: int,
    head_dim: int = 128,
    hidden: int | None = None,
    vocab_size: int = 32_768,
    max_length: int = 1024,
    bias: RelativeBiasConfig | None = None,
    dispatch: Dispatch = Capacity(1.0),  # noqa: B008
) -> TransformerConfig:
    """A GLaM of any size; `hidden` None means four times the width, of dense layers and of experts alike.

    Args:
      bias: relative position bias of the scores, shared by all layers; None: with T5's buckets.
      dispatch: by default with the capacity of GShard, on which its layers are based.
    """
    norm, init, hidden = RMSNormConfig(), UniformFanIn(), hidden or 4 * width
    scores = ScoresConfig(bias=distance_bias(heads) if bias is None else bias)
    mixer = AttentionConfig(heads, head_dim, heads, scores=scores, init=FanIn(), out_init=FanIn())
    block = BlockConfig(mixer, GLUConfig(hidden, "gelu_tanh", init=init, out_init=init), norm)
    expert = MLPConfig(hidden, "gelu_tanh", bias=False, init=init, out_init=init)
    # Coefficient from section 5.1.
    layer = MoEConfig(experts, expert, SoftmaxConfig(2, init=init), dispatch, (LoadLoss(0.01),))
    embed, head = EmbedConfig(Normal(1.0)), TiedHead(scale=width**-0.5)
    dense = decoder((block,) * layers, width, vocab_size, max_length, norm, embed, head)
    return with_experts(dense, layer, range(1, layers, 2))


SIZES = {
    "glam-0.1b-64e": lambda: glam(12, 12, 768, experts=64, head_dim=64),
    "glam-1.7b-64e": lambda: glam(24, 16, 2048, experts=64),
    "glam-1.7b-128e": lambda: glam(24, 16, 2048, experts=128),
    "glam-1.7b-256e": lambda: glam(24, 16, 2048, experts=256),
    "glam-8b-64e": lambda: glam(32, 32, 4096, experts=64),
    "glam-64b-64e": lambda: glam(64, 128, 8192, experts=64, vocab_size=256_000),
}

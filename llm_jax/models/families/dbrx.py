"""DBRX (Databricks 2024, databricks.com/blog/introducing-dbrx-new-state-art-open-llm; sizes of its config.json): 4 of
16 experts per token, clipped queries, keys and values, norms without bias.

Initialisation: none is published; that of GPT-2 is used, N(0, 0.02), smaller by 1 / sqrt(2 layers) for matrices that
write to the residual stream, routers N(0, 0.02), biases 0.
"""

from llm_jax.core.checks import check_divides
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.ffn.balance import Balance, LoadLoss, mean_over
from llm_jax.layers.ffn.dispatch import Dispatch
from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import decoder, head_config, residual_init


def dbrx(
    layers: int,
    heads: int,
    width: int,
    *,
    hidden: int,
    kv_heads: int = 8,
    vocab_size: int = 100_352,
    max_length: int = 32768,
    rope: RoPEConfig = RoPEConfig(5e5),  # noqa: B008
    clip: float | None = 8.0,
    experts: int = 16,
    top: int = 4,
    normalized: bool = True,
    dispatch: Dispatch = Dropless(),  # noqa: B008
    balance: tuple[Balance, ...] | None = None,
) -> TransformerConfig:
    """A DBRX of any size.

    Args:
      hidden: width of an expert.
      normalized: whether the weights of the chosen experts are normalised to sum to one.
      balance: None: a load loss with the `moe_loss_weight` of its config.json, which MegaBlocks, its training library,
        applies to a mean over layers and choices.
    """
    check_divides(heads, width, "heads", "width")
    norm, out_init = LayerNormConfig(bias=False), residual_init(layers)
    mixer = AttentionConfig(heads, width // heads, kv_heads, position=rope, clip=clip, out_init=out_init)
    balance = mean_over(layers, LoadLoss(0.05, first=False)) if balance is None else balance
    ffn = MoEConfig(experts, GLUConfig(hidden, out_init=out_init), SoftmaxConfig(top, normalized), dispatch, balance)
    blocks = (BlockConfig(mixer, ffn, norm),) * layers
    return decoder(blocks, width, vocab_size, max_length, norm, head=head_config(False))


SIZES = {
    "dbrx": lambda: dbrx(40, 48, 6144, hidden=10752),
}

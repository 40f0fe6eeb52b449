"""gpt-oss (OpenAI 2025, arXiv:2508.10925, section 2 and table 1): 4 experts per token, attention with sinks and
alternately with a window of 128 tokens or none, biases in all linear layers.

Initialisation: none is published; that of GPT-2 is used, N(0, 0.02), smaller by 1 / sqrt(2 layers) for matrices that
write to the residual stream, routers N(0, 0.02), biases and sinks 0.
"""

from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.attention.masks import Causal
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.ffn.balance import Balance, LoadLoss
from llm_jax.layers.ffn.dispatch import Dispatch
from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.layers.norms import RMSNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.layers.positions.rope_scaling import YaRNScaling
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import decoder, head_config, residual_init

_ROPE = RoPEConfig(150_000.0, scaling=YaRNScaling(32.0, 4096, truncate=False))


def gpt_oss(
    layers: int,
    heads: int,
    width: int,
    *,
    hidden: int,
    kv_heads: int = 8,
    vocab_size: int = 201_088,
    max_length: int = 131_072,
    rope: RoPEConfig = _ROPE,
    epsilon: float = 1e-5,
    tied: bool = False,
    head_dim: int = 64,
    bias: bool = True,
    windows: tuple[int | None, ...] | None = None,
    experts: int = 32,
    top: int = 4,
    dispatch: Dispatch = Dropless(),  # noqa: B008
    balance: tuple[Balance, ...] | None = None,
) -> TransformerConfig:
    """A gpt-oss of any size.

    Args:
      hidden: width of an expert.
      windows: attention window of each layer; None: 128 and no window in turn.
      balance: None: a load loss with the coefficient of Switch Transformer. The paper states none, and the
        0.9 of the published config.json is not documented as the value of its training.
    """
    norm, out_init = RMSNormConfig(epsilon), residual_init(layers)
    balance = (LoadLoss(0.01, first=False),) if balance is None else balance
    expert = GLUConfig(hidden, "clamped_swiglu", bias=True, out_init=out_init)
    ffn = MoEConfig(experts, expert, SoftmaxConfig(top, bias=True), dispatch, balance)

    def block(window: int | None) -> BlockConfig:
        mixer = AttentionConfig(
            heads,
            head_dim,
            kv_heads,
            Causal(window),
            position=rope,
            scores=ScoresConfig(sinks=True),
            bias=bias,
            out_init=out_init,
        )
        return BlockConfig(mixer, ffn, norm)

    windows = windows or tuple(None if layer % 2 else 128 for layer in range(layers))
    blocks = tuple(block(window) for window in windows)
    return decoder(blocks, width, vocab_size, max_length, norm, head=head_config(tied))


SIZES = {
    "gpt-oss-20b": lambda: gpt_oss(24, 64, 2880, hidden=2880),
    "gpt-oss-120b": lambda: gpt_oss(36, 64, 2880, hidden=2880, experts=128),
}

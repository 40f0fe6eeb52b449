"""DeepSeek-V2 and V3 (DeepSeek-AI 2024, arXiv:2405.04434, 2.1, 2.2 and 3.1.2, and arXiv:2412.19437, 2.1 and 4.2):
latent attention, and after the first layers many fine-grained experts and some shared ones.

Youtu-LLM (Tencent 2025, arXiv:2512.24618) has latent attention and no experts; its sizes are those of its model card
and config.json. The layer of DeepSeek-V3 that predicts a second token is left out of the sizes; `ChainedHeads(2)` as
`multi_token` adds it.

Initialisation: a standard deviation of 0.006 for "all learnable parameters" (V2: 3.1.2, V3: 4.2), which do not name the
distribution: here N(0, 0.006) for all matrices, routers included, and for token embeddings, at every depth. Youtu-LLM's
is not published; it has N(0, 0.02) here.
"""

from llm_jax.layers.attention.latent import LatentAttentionConfig
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.balance import BiasUpdate, SequenceLoss
from llm_jax.layers.ffn.dispatch import Dispatch
from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.groups import GroupLimit
from llm_jax.layers.ffn.routers.token_choice import SigmoidConfig, SoftmaxConfig
from llm_jax.layers.ffn.routing import Router
from llm_jax.layers.initialisers import Normal
from llm_jax.layers.norms import RMSNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.layers.positions.rope_scaling import YaRNScaling
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import decoder, head_config, with_experts

INIT = Normal(0.006)


def deepseek(
    layers: int,
    heads: int,
    width: int,
    *,
    hidden: int,
    query_rank: int | None = 1536,
    rank: int = 512,
    head_dim: int = 128,
    rotary_dim: int = 64,
    value_dim: int = 128,
    vocab_size: int = 129_280,
    max_length: int = 4096,
    rope: RoPEConfig = RoPEConfig(),  # noqa: B008
    sharpening: float = 0.0,
    epsilon: float = 1e-6,
    tied: bool = False,
    layer: MoEConfig | None = None,
    first: int = 1,
    init: Normal = INIT,
) -> TransformerConfig:
    """A DeepSeek of any size.

    Args:
      hidden: width of the ffn of layers without experts.
      query_rank: None: queries are projected from the input itself, as in V2-Lite.
      sharpening: sharpening of the scores, if `rope` is scaled by YaRN.
      epsilon: epsilon of the norms of the residual stream; norms of latent vectors have 1e-6 in all published models.
      layer: MoE layer, from `experts`; None: no layer has experts.
      first: number of layers before those with experts.
      init: initialiser of matrices and token embeddings, except for those of `layer`.
    """
    norm = RMSNormConfig(epsilon)
    mixer = LatentAttentionConfig(
        heads,
        query_rank,
        rank,
        head_dim,
        rotary_dim,
        value_dim,
        position=rope,
        sharpening=sharpening,
        init=init,
        out_init=init,
    )
    block = BlockConfig(mixer, GLUConfig(hidden, init=init, out_init=init), norm)
    embed, head = EmbedConfig(init), head_config(tied, init)
    dense = decoder((block,) * layers, width, vocab_size, max_length, norm, embed, head)
    return dense if layer is None else with_experts(dense, layer, range(first, layers))


def experts(
    count: int,
    hidden: int,
    router: Router,
    shared: int,
    dispatch: Dispatch = Dropless(),  # noqa: B008
) -> MoEConfig:
    """The MoE layer of a DeepSeek, balanced as in V3 if the router has a bias.

    Args:
      hidden: width of each expert.
      shared: number of shared experts.
    """
    # V2 also has device-level losses, which are not implemented.
    of_v3 = (SequenceLoss(1e-4, as_chosen=False), BiasUpdate())
    balance = of_v3 if isinstance(router, SigmoidConfig) else (SequenceLoss(0.003),)
    expert, common = (GLUConfig(width, init=INIT, out_init=INIT) for width in (hidden, shared * hidden))
    return MoEConfig(count, expert, router, dispatch, balance, common)


_LONG = {
    "vocab_size": 102_400,
    "max_length": 163_840,
    "rope": RoPEConfig(scaling=YaRNScaling(40.0, 4096, magnitude=1.0)),
    "sharpening": 0.707,
}


def v2_lite() -> TransformerConfig:
    """DeepSeek-V2-Lite (arXiv:2405.04434, appendix B)."""
    layer = experts(64, 1408, SoftmaxConfig(6, normalized=False, init=INIT), shared=2)
    return deepseek(27, 16, 2048, hidden=10944, query_rank=None, **_LONG, layer=layer)


def v2() -> TransformerConfig:
    """DeepSeek-V2 (arXiv:2405.04434, 3.1.2)."""
    router = SoftmaxConfig(6, normalized=False, scale=16.0, limit=GroupLimit(8, 3, best=1), init=INIT)
    return deepseek(60, 128, 5120, hidden=12288, **_LONG, layer=experts(160, 1536, router, shared=2))


def v3() -> TransformerConfig:
    """DeepSeek-V3 (arXiv:2412.19437, 4.2)."""
    layer = experts(256, 2048, SigmoidConfig(8, scale=2.5, limit=GroupLimit(8, 4), init=INIT), shared=1)
    long = _LONG | {"vocab_size": 129_280, "sharpening": 1.0}
    return deepseek(61, 128, 7168, hidden=18432, **long, layer=layer, first=3)


SIZES = {
    "deepseek-v2-lite": v2_lite,
    "deepseek-v2": v2,
    "deepseek-v3": v3,
    "youtu-llm-2b": lambda: deepseek(
        32,
        16,
        2048,
        hidden=6144,
        vocab_size=128_256,
        max_length=131_072,
        rope=RoPEConfig(1.6e6),
        tied=True,
        init=Normal(),
    ),
}

"""OLMoE (Muennighoff et al. 2024, arXiv:2409.02060, table 10 of the appendix): 8 of 64 fine-grained experts per token,
norms of queries and keys over all heads, pre-norm blocks.

Initialisation: N(0, 0.02) truncated at three standard deviations, for every matrix, routers included, and for token
embeddings, at every depth (github.com/allenai/OLMoE, configs/OLMoE-1B-7B-0924.yml; github.com/allenai/OLMo, branch
Muennighoff/MoE, olmo/model.py: `OLMoEBlock.reset_parameters`).
"""

from typing import Any

from llm_jax.layers.attention.attention import QKNormConfig
from llm_jax.layers.ffn.balance import Balance, LoadLoss, ZLoss, mean_over
from llm_jax.layers.ffn.dispatch import Dispatch
from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.layers.norms import RMSNormConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import with_experts
from llm_jax.models.families.llama import llama
from llm_jax.models.families.olmo2 import INIT


def olmoe(
    layers: int,
    heads: int,
    width: int,
    *,
    hidden: int,
    vocab_size: int = 50304,
    max_length: int = 4096,
    epsilon: float = 1e-5,
    experts: int = 64,
    top: int = 8,
    normalized: bool = False,
    dispatch: Dispatch = Dropless(),  # noqa: B008
    balance: tuple[Balance, ...] | None = None,
    **options: Any,
) -> TransformerConfig:
    """An OLMoE of any size; other options are those of `llama`.

    Args:
      hidden: width of an expert.
      normalized: whether the weights of the chosen experts are normalised to sum to one.
      balance: None: load and router z-losses of section 2 and table 10 of the paper, which its code averages over
        layers.
    """
    qk_norm = QKNormConfig(RMSNormConfig(epsilon), over="heads")
    if balance is None:
        balance = mean_over(layers, LoadLoss(0.01, first=False), ZLoss(0.001))
    expert = GLUConfig(hidden, init=INIT, out_init=INIT)
    layer = MoEConfig(experts, expert, SoftmaxConfig(top, normalized, init=INIT), dispatch, balance)
    limits: dict[str, Any] = {"hidden": hidden, "vocab_size": vocab_size, "max_length": max_length, "epsilon": epsilon}
    own: dict[str, Any] = {"qk_norm": qk_norm, "init": INIT, "out_init": INIT}
    return with_experts(llama(layers, heads, width, **limits, **own, **options), layer)


SIZES = {
    "olmoe-1b-7b": lambda: olmoe(16, 16, 2048, hidden=1024),
}

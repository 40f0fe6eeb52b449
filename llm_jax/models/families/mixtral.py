"""Mixtral 8x7B and 8x22B (Jiang et al. 2024, arXiv:2401.04088, table 1): Mistral with two of eight experts per token.

Initialisation: none is published; that of llama.py is used, routers N(0, 0.02).
"""

from typing import Any

from llm_jax.layers.ffn.balance import Balance, LoadLoss, mean_over
from llm_jax.layers.ffn.dispatch import Dispatch
from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import residual_init, with_experts
from llm_jax.models.families.llama import llama


def mixtral(
    layers: int,
    heads: int,
    width: int,
    *,
    hidden: int,
    experts: int = 8,
    top: int = 2,
    dispatch: Dispatch = Dropless(),  # noqa: B008
    balance: tuple[Balance, ...] | None = None,
    **options: Any,
) -> TransformerConfig:
    """A Mixtral of any size; other options are those of `llama`.

    Args:
      hidden: width of an expert.
      balance: None: the load loss of the config.json of the 8x7B, which the paper does not mention.
    """
    limits: dict[str, Any] = {"kv_heads": 8, "max_length": 32768, "rope": RoPEConfig(1e6), "epsilon": 1e-5}
    expert = GLUConfig(hidden, out_init=residual_init(layers))
    balance = _balance(0.02, layers, top) if balance is None else balance
    layer = MoEConfig(experts, expert, SoftmaxConfig(top), dispatch, balance)
    return with_experts(llama(layers, heads, width, hidden=hidden, **limits | options), layer)


def _balance(coefficient: float, layers: int, top: int = 2) -> tuple[Balance, ...]:
    """Load loss of the `router_aux_loss_coef` of a config.json: see interop/expert_tensors.py."""
    return mean_over(layers, LoadLoss(coefficient * top, first=False))


SIZES = {
    "mixtral-8x7b": lambda: mixtral(32, 32, 4096, hidden=14336),
    "mixtral-8x22b": lambda: mixtral(56, 48, 6144, hidden=16384, max_length=65536, balance=_balance(0.001, 56)),
}

"""Qwen 1.5 MoE (Qwen Team 2024, qwenlm.github.io/blog/qwen-moe) and Qwen 2 MoE (Yang et al. 2024, arXiv:2407.10671,
table 1): fine-grained experts and a gated shared expert. Qwen 3 MoE (Yang et al. 2025, arXiv:2505.09388, table 2): no
shared expert.

Initialisation: none is published; that of llama.py is used, routers and the gate of the shared expert N(0, 0.02).
"""

from typing import Any

from llm_jax.layers.ffn.balance import Balance, LoadLoss, mean_over
from llm_jax.layers.ffn.dispatch import Dispatch
from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import residual_init, with_experts
from llm_jax.models.families.qwen import qwen2, qwen3


def qwen2_moe(
    layers: int,
    heads: int,
    width: int,
    *,
    vocab_size: int = 151_936,
    experts: int = 64,
    top: int = 8,
    expert_hidden: int = 2560,
    shared_hidden: int = 20480,
    normalized: bool = False,
    mixed: tuple[int, ...] | None = None,
    dispatch: Dispatch = Dropless(),  # noqa: B008
    balance: tuple[Balance, ...] | None = None,
    **options: Any,
) -> TransformerConfig:
    """A Qwen 2 with experts; other options are those of `qwen2`, where `hidden` is that of layers without experts.

    Args:
      expert_hidden: width of a routed expert.
      shared_hidden: width of the shared expert.
      normalized: whether the weights of the chosen experts are normalised to sum to one.
      mixed: layers that have experts, counted from 0; None: all.
      balance: None: the load loss of the published config.json files; the papers state no coefficient.
    """
    out_init = residual_init(layers)
    expert, shared = GLUConfig(expert_hidden, out_init=out_init), GLUConfig(shared_hidden, out_init=out_init)
    router = SoftmaxConfig(top, normalized)
    balance = _balance(layers, top, mixed) if balance is None else balance
    layer = MoEConfig(experts, expert, router, dispatch, balance, shared, shared_gate=True)
    return with_experts(qwen2(layers, heads, width, vocab_size=vocab_size, **options), layer, mixed)


def qwen3_moe(
    layers: int,
    heads: int,
    width: int,
    *,
    kv_heads: int = 4,
    experts: int = 128,
    top: int = 8,
    expert_hidden: int = 768,
    normalized: bool = True,
    mixed: tuple[int, ...] | None = None,
    dispatch: Dispatch = Dropless(),  # noqa: B008
    balance: tuple[Balance, ...] | None = None,
    **options: Any,
) -> TransformerConfig:
    """A Qwen 3 with experts; arguments as for `qwen2_moe`, other options of `qwen3`."""
    expert = GLUConfig(expert_hidden, out_init=residual_init(layers))
    balance = _balance(layers, top, mixed) if balance is None else balance
    layer = MoEConfig(experts, expert, SoftmaxConfig(top, normalized), dispatch, balance)
    return with_experts(qwen3(layers, heads, width, kv_heads=kv_heads, **options), layer, mixed)


def _balance(layers: int, top: int, mixed: tuple[int, ...] | None) -> tuple[Balance, ...]:
    """Load loss with `router_aux_loss_coef` 0.001: see interop/expert_tensors.py."""
    return mean_over(layers if mixed is None else max(1, len(mixed)), LoadLoss(0.001 * top, first=False))


SIZES = {
    "qwen1.5-moe-a2.7b": lambda: qwen2_moe(
        24,
        16,
        2048,
        hidden=5632,
        kv_heads=16,
        max_length=8192,
        experts=60,
        top=4,
        expert_hidden=1408,
        shared_hidden=5632,
    ),
    "qwen2-57b-a14b": lambda: qwen2_moe(28, 28, 3584, hidden=18944, kv_heads=4, max_length=131_072),
    "qwen3-30b-a3b": lambda: qwen3_moe(48, 32, 2048, hidden=6144),
    "qwen3-235b-a22b": lambda: qwen3_moe(94, 64, 4096, hidden=12288, expert_hidden=1536),
}

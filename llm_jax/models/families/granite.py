"""Granite 3.0 (Granite Team 2024, github.com/ibm-granite/granite-3.0-language-models/blob/main/paper.pdf, section 2):
LLaMA with factors of token embeddings, attention scores, branch outputs, and logits.

Initialisation: none is published; that of llama.py is used, with routers N(0, 0.02).
"""

import dataclasses
from typing import Any

from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.ffn.balance import Balance, LoadLoss, mean_over
from llm_jax.layers.ffn.dispatch import Dispatch
from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.models.block import ScaledSerial, Serial
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import residual_init, with_experts
from llm_jax.models.families.llama import llama
from llm_jax.models.heads import TiedHead


def granite(
    layers: int,
    heads: int,
    width: int,
    *,
    head_dim: int | None = None,
    embedding: float = 12.0,
    scores: float | None = None,
    residual: float = 0.22,
    logits: float = 0.125,
    **options: Any,
) -> TransformerConfig:
    """A Granite of any size; other options are those of `llama`.

    Args:
      embedding, scores, residual, logits: the factors. `scores` None: one over the head size.
    """
    size = width // heads if head_dim is None else head_dim
    wiring = Serial() if residual == 1 else ScaledSerial(factor=residual)
    limits: dict[str, Any] = {"vocab_size": 49155, "max_length": 4096, "epsilon": 1e-5}
    scaled = ScoresConfig(1 / size if scores is None else scores)
    own: dict[str, Any] = {"head_dim": size, "wiring": wiring, "scores": scaled, "tied": True}
    config = llama(layers, heads, width, **own, **limits | options)
    embed = dataclasses.replace(config.embed, scale=embedding)
    return dataclasses.replace(config, embed=embed, head=TiedHead(scale=logits))


def granite_moe(
    layers: int,
    heads: int,
    width: int,
    *,
    hidden: int,
    experts: int = 32,
    top: int = 8,
    dispatch: Dispatch = Dropless(),  # noqa: B008
    balance: tuple[Balance, ...] | None = None,
    **options: Any,
) -> TransformerConfig:
    """A Granite with experts; other options of `granite`.

    Args:
      hidden: width of an expert.
      balance: None: the load loss of its config.json files.
    """
    balance = mean_over(layers, LoadLoss(0.001 * top, first=False)) if balance is None else balance
    expert = GLUConfig(hidden, out_init=residual_init(layers))
    layer = MoEConfig(experts, expert, SoftmaxConfig(top), dispatch, balance)
    return with_experts(granite(layers, heads, width, hidden=hidden, **options), layer)


SIZES = {
    "granite-3.0-2b": lambda: granite(40, 32, 2048, hidden=8192, kv_heads=8),
    "granite-3.0-8b": lambda: granite(40, 32, 4096, hidden=12800, kv_heads=8, logits=0.0625),
    "granite-3.0-1b-a400m": lambda: granite_moe(24, 16, 1024, hidden=512, kv_heads=8, logits=1 / 6),
    "granite-3.0-3b-a800m": lambda: granite_moe(32, 24, 1536, hidden=512, kv_heads=8, experts=40, logits=1 / 6),
}

"""Command R (huggingface.co/CohereLabs/c4ai-command-r-v01), R+ (c4ai-command-r-plus there) and R7B
(c4ai-command-r7b-12-2024; Cohere 2025, arXiv:2504.00698, section 2): parallel attention and ffn with one LayerNorm
without biases, a tied head with scaled logits. R+ normalises queries and keys. Three of four layers of R7B have a
window, and only these have rotary embeddings.

Initialisation: none is published; that of llama.py is used.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from llm_jax.layers.attention.attention import QKNormConfig
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.block import Parallel
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.llama import Rotations, llama
from llm_jax.models.heads import TiedHead


def cohere(
    layers: int,
    heads: int,
    width: int,
    *,
    rope: Rotations = RoPEConfig(8e6),  # noqa: B008
    epsilon: float = 1e-5,
    scale: float = 0.0625,
    qk_norm: bool = False,
    **options: Any,
) -> TransformerConfig:
    """A Command R of any size; other options are those of `llama`.

    Args:
      scale: factor of the hidden states before the tied head.
      qk_norm: whether queries and keys are normalised, with a scale for each head (Command R+).
    """
    norm = LayerNormConfig(epsilon, bias=False)
    own: dict[str, Any] = {"norm": norm, "wiring": Parallel(), "rope": rope}
    own["qk_norm"] = QKNormConfig(norm, over="each head") if qk_norm else None
    limits: dict[str, Any] = {"vocab_size": 256_000, "max_length": 131_072}
    config = llama(layers, heads, width, tied=True, **own, **limits | options)
    return dataclasses.replace(config, head=TiedHead(scale=scale))


def cohere2(
    layers: int,
    heads: int,
    width: int,
    *,
    rope: RoPEConfig = RoPEConfig(5e4),  # noqa: B008
    window: Sequence[int | None] | None = None,
    scale: float = 0.25,
    **options: Any,
) -> TransformerConfig:
    """A Command R7B of any size; other options are those of `cohere`.

    Args:
      rope: rotary embedding of the layers with a window.
      window: attention window of each layer; None: 4096, and no window in every fourth layer.
    """
    if window is None:
        window = tuple(None if layer % 4 == 3 else 4096 for layer in range(layers))
    ropes = tuple(None if seen is None else rope for seen in window)
    return cohere(layers, heads, width, window=window, rope=ropes, scale=scale, **options)


SIZES = {
    "command-r-v01": lambda: cohere(40, 64, 8192, hidden=22528),
    "command-r-plus": lambda: cohere(
        64, 96, 12288, hidden=33792, kv_heads=8, rope=RoPEConfig(7.5e7), scale=0.8333333333333334, qk_norm=True
    ),
    "command-r7b": lambda: cohere2(32, 32, 4096, hidden=14336, kv_heads=8),
}

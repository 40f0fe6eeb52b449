"""SmolLM3 (Bakouch et al. 2025, huggingface.co/blog/smollm3): LLaMA without positions in every fourth layer (Yang et
al. 2025, arXiv:2501.18795, section 3).

Initialisation: none is published; that of llama.py is used.
"""

from typing import Any

from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.llama import llama


def smollm3(layers: int, heads: int, width: int, *, tied: bool = True, **options: Any) -> TransformerConfig:
    """A SmolLM3 of any size; other options are those of `llama`."""
    rope = tuple(None if layer % 4 == 3 else RoPEConfig(5e6) for layer in range(layers))
    limits: dict[str, Any] = {"kv_heads": 4, "vocab_size": 128_256, "max_length": 65536, "rope": rope, "tied": tied}
    return llama(layers, heads, width, **limits | options)


SIZES = {"smollm3-3b": lambda: smollm3(36, 16, 2048, hidden=11008)}

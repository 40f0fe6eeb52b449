"""Qwen 2 and 2.5 (Yang et al. 2024, arXiv:2407.10671, table 1): biases on queries, keys and values. Qwen 3 (Yang et al.
2025, arXiv:2505.09388, table 1): normalised queries and keys instead.

Initialisation: none is published; that of llama.py is used.
"""

from typing import Any

from llm_jax.layers.attention.attention import QKNormConfig
from llm_jax.layers.norms import RMSNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.llama import llama

_LIMITS: dict[str, Any] = {"vocab_size": 152_064, "max_length": 32768, "rope": RoPEConfig(1e6)}


def qwen2(layers: int, heads: int, width: int, **options: Any) -> TransformerConfig:
    """A Qwen 2; options are those of `llama`."""
    biases: dict[str, Any] = {"bias": True, "out_bias": False}
    return llama(layers, heads, width, **_LIMITS | biases | options)


def qwen3(layers: int, heads: int, width: int, *, epsilon: float = 1e-6, **options: Any) -> TransformerConfig:
    """A Qwen 3; options are those of `llama`, with the defaults 128 for `head_dim` and 8 for `kv_heads`."""
    limits: dict[str, Any] = _LIMITS | {"vocab_size": 151_936, "max_length": 40960, "head_dim": 128, "kv_heads": 8}
    qk_norm = QKNormConfig(RMSNormConfig(epsilon))
    return llama(layers, heads, width, epsilon=epsilon, qk_norm=qk_norm, **limits | options)


SIZES = {
    "qwen2-0.5b": lambda: qwen2(24, 14, 896, hidden=4864, kv_heads=2, vocab_size=151_936, tied=True),
    "qwen2-1.5b": lambda: qwen2(28, 12, 1536, hidden=8960, kv_heads=2, vocab_size=151_936, tied=True),
    "qwen2-7b": lambda: qwen2(28, 28, 3584, hidden=18944, kv_heads=4),
    "qwen2-72b": lambda: qwen2(80, 64, 8192, hidden=29568, kv_heads=8),
    "qwen3-0.6b": lambda: qwen3(28, 16, 1024, hidden=3072, tied=True),
    "qwen3-1.7b": lambda: qwen3(28, 16, 2048, hidden=6144, tied=True),
    "qwen3-4b": lambda: qwen3(36, 32, 2560, hidden=9728, tied=True),
    "qwen3-8b": lambda: qwen3(36, 32, 4096, hidden=12288),
    "qwen3-14b": lambda: qwen3(40, 40, 5120, hidden=17408),
    "qwen3-32b": lambda: qwen3(64, 64, 5120, hidden=25600),
}

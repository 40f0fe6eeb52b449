"""Qwen 2 and 2.5 (Yang et al. 2024, arXiv:2407.10671, table 1): biases on queries, keys and values. Qwen 3 (Yang et al.
2025, arXiv:2505.09388, table 1): normalised queries and keys instead.

Initialisation: none is published; as LLaMA's here (llama.py).
"""

from llm_jax.layers.attention.attention import QKNormConfig
from llm_jax.layers.norms import RMSNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.llama import llama


def qwen2(
    layers: int,
    heads: int,
    width: int,
    hidden: int,
    kv_heads: int,
    vocab_size: int = 152_064,
    max_length: int = 32768,
    rope: RoPEConfig = RoPEConfig(1e6),  # noqa: B008
    epsilon: float = 1e-6,
    tied: bool = False,
    head_dim: int | None = None,
    window: tuple[int | None, ...] | None = None,
) -> TransformerConfig:
    """A Qwen 2; arguments as of `llama`."""
    shape = (layers, heads, width, hidden, kv_heads, vocab_size, max_length, rope, epsilon, tied, head_dim)
    return llama(*shape, bias=True, out_bias=False, window=window)


def qwen3(
    layers: int,
    heads: int,
    width: int,
    hidden: int,
    kv_heads: int = 8,
    vocab_size: int = 151_936,
    max_length: int = 40960,
    rope: RoPEConfig = RoPEConfig(1e6),  # noqa: B008
    epsilon: float = 1e-6,
    tied: bool = False,
    head_dim: int = 128,
    bias: bool = False,
    window: tuple[int | None, ...] | None = None,
) -> TransformerConfig:
    """A Qwen 3; arguments as of `llama`."""
    shape = (layers, heads, width, hidden, kv_heads, vocab_size, max_length, rope, epsilon, tied, head_dim)
    return llama(*shape, bias=bias, window=window, qk_norm=QKNormConfig(RMSNormConfig(epsilon)))


SIZES = {
    "qwen2-0.5b": lambda: qwen2(24, 14, 896, 4864, 2, 151_936, tied=True),
    "qwen2-1.5b": lambda: qwen2(28, 12, 1536, 8960, 2, 151_936, tied=True),
    "qwen2-7b": lambda: qwen2(28, 28, 3584, 18944, 4),
    "qwen2-72b": lambda: qwen2(80, 64, 8192, 29568, 8),
    "qwen3-0.6b": lambda: qwen3(28, 16, 1024, 3072, tied=True),
    "qwen3-1.7b": lambda: qwen3(28, 16, 2048, 6144, tied=True),
    "qwen3-4b": lambda: qwen3(36, 32, 2560, 9728, tied=True),
    "qwen3-8b": lambda: qwen3(36, 32, 4096, 12288),
    "qwen3-14b": lambda: qwen3(40, 40, 5120, 17408),
    "qwen3-32b": lambda: qwen3(64, 64, 5120, 25600),
}

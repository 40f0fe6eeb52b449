"""Mistral 7B (Jiang et al. 2023, arXiv:2310.06825, table 1): LLaMA with a sliding window.

Initialisation: none is published; that of llama.py is used.
"""

from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.families.llama import llama

SIZES = {
    "mistral-7b-v0.1": lambda: llama(
        32, 32, 4096, hidden=14336, kv_heads=8, max_length=32768, epsilon=1e-5, window=4096
    ),
    "mistral-7b-v0.3": lambda: llama(
        32, 32, 4096, hidden=14336, kv_heads=8, vocab_size=32768, max_length=32768, rope=RoPEConfig(1e6), epsilon=1e-5
    ),
}

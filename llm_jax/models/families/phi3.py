"""Phi-3 (Abdin et al. 2024, arXiv:2404.14219, section 2): LLaMA, its published checkpoints with a sliding window.

Initialisation: none is published; that of llama.py is used.
"""

from llm_jax.models.families.llama import llama

SIZES = {
    "phi3-mini": lambda: llama(32, 32, 3072, hidden=8192, vocab_size=32064, max_length=4096, epsilon=1e-5, window=2047),
    "phi3-medium": lambda: llama(
        40, 40, 5120, hidden=17920, kv_heads=10, vocab_size=32064, max_length=4096, epsilon=1e-5, window=2047
    ),
}

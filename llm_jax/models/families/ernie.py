"""ERNIE 4.5 (Baidu 2025, yiyan.baidu.com/blog/publication/ERNIE_Technical_Report.pdf, table 1): the model without
experts, a LLaMA.

Initialisation: none is published; that of llama.py is used.
"""

from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.families.llama import llama

SIZES = {
    "ernie4.5-0.3b": lambda: llama(
        *(18, 16, 1024),
        hidden=3072,
        kv_heads=2,
        head_dim=128,
        vocab_size=103_424,
        max_length=131_072,
        rope=RoPEConfig(5e5),
        epsilon=1e-5,
        tied=True,
    )
}

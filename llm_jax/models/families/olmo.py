"""OLMo 1B and 7B (Groeneveld et al. 2024, arXiv:2402.00838, table 1 and section 2.1): LLaMA with norms that have no
parameters.

Initialisation: none is published; that of llama.py is used.
"""

from typing import Any

from llm_jax.layers.norms import PlainLayerNormConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.llama import llama


def olmo(layers: int, heads: int, width: int, **options: Any) -> TransformerConfig:
    """An OLMo of any size; options are those of `llama`."""
    limits: dict[str, Any] = {"vocab_size": 50304, "max_length": 2048, "norm": PlainLayerNormConfig()}
    return llama(layers, heads, width, **limits | options)


SIZES = {
    "olmo-1b": lambda: olmo(16, 16, 2048, hidden=8192, tied=True),
    "olmo-7b": lambda: olmo(32, 32, 4096, hidden=11008),
}

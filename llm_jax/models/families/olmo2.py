"""OLMo 2 (OLMo Team 2025, arXiv:2501.00656, table 1 and section 3.1): norms of the outputs of mixer and ffn, and of
queries and keys over all heads.

Initialisation: N(0, 0.02) for every matrix and for token embeddings, at every depth (section 3.2), truncated at three
standard deviations (github.com/allenai/OLMo, `init_cutoff_factor` in configs/official-1124 and official-0425, and
olmo/initialization.py; the 32B: github.com/allenai/OLMo-core, src/olmo_core/nn/transformer/init.py).
"""

from typing import Any

from llm_jax.layers.attention.attention import QKNormConfig
from llm_jax.layers.initialisers import Normal
from llm_jax.layers.norms import RMSNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.block import Serial
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.llama import llama

INIT = Normal(0.02, cut=3.0)


def olmo2(
    layers: int,
    heads: int,
    width: int,
    *,
    vocab_size: int = 100_352,
    max_length: int = 4096,
    rope: RoPEConfig = RoPEConfig(5e5),  # noqa: B008
    epsilon: float = 1e-6,
    **options: Any,
) -> TransformerConfig:
    """An OLMo 2 of any size; other options are those of `llama`."""
    qk_norm, wiring = QKNormConfig(RMSNormConfig(epsilon), over="heads"), Serial(before=False, after=True)
    limits: dict[str, Any] = {"vocab_size": vocab_size, "max_length": max_length, "rope": rope, "epsilon": epsilon}
    own: dict[str, Any] = {"qk_norm": qk_norm, "wiring": wiring, "init": INIT, "out_init": INIT}
    return llama(layers, heads, width, **limits, **own, **options)


SIZES = {
    "olmo2-1b": lambda: olmo2(16, 16, 2048, hidden=8192),
    "olmo2-7b": lambda: olmo2(32, 32, 4096, hidden=11008),
    "olmo2-13b": lambda: olmo2(40, 40, 5120, hidden=13824),
    "olmo2-32b": lambda: olmo2(64, 40, 5120, hidden=27648, kv_heads=8),
}

"""OLMo 2 (OLMo Team 2025, arXiv:2501.00656, table 1 and section 3.1): norms of the outputs of mixer and ffn, and of
queries and keys over all heads. OLMo 3 (OLMo Team 2025, arXiv:2512.13961): three layers with a window, then one
without; only the latter has YaRN for long sequences.

Initialisation: N(0, 0.02) for every matrix and for token embeddings, at every depth (section 3.2), truncated at three
standard deviations (github.com/allenai/OLMo, `init_cutoff_factor` in configs/official-1124 and official-0425, and
olmo/initialization.py; the 32B: github.com/allenai/OLMo-core, src/olmo_core/nn/transformer/init.py).
"""

from collections.abc import Sequence
from typing import Any

from llm_jax.layers.attention.attention import QKNormConfig
from llm_jax.layers.initialisers import Normal
from llm_jax.layers.norms import RMSNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.layers.positions.rope_scaling import YaRNScaling
from llm_jax.models.block import Serial
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.llama import Rotations, llama

INIT = Normal(0.02, cut=3.0)


def olmo2(
    layers: int,
    heads: int,
    width: int,
    *,
    vocab_size: int = 100_352,
    max_length: int = 4096,
    rope: Rotations = RoPEConfig(5e5),  # noqa: B008
    epsilon: float = 1e-6,
    **options: Any,
) -> TransformerConfig:
    """An OLMo 2 of any size; other options are those of `llama`."""
    qk_norm, wiring = QKNormConfig(RMSNormConfig(epsilon), over="heads"), Serial(before=False, after=True)
    limits: dict[str, Any] = {"vocab_size": vocab_size, "max_length": max_length, "rope": rope, "epsilon": epsilon}
    own: dict[str, Any] = {"qk_norm": qk_norm, "wiring": wiring, "init": INIT, "out_init": INIT}
    return llama(layers, heads, width, **limits, **own, **options)


def olmo3(
    layers: int,
    heads: int,
    width: int,
    *,
    window: Sequence[int | None] | None = None,
    rope: RoPEConfig = RoPEConfig(5e5),  # noqa: B008
    local_rope: RoPEConfig = RoPEConfig(5e5),  # noqa: B008
    **options: Any,
) -> TransformerConfig:
    """An OLMo 3 of any size; other options are those of `olmo2`.

    Args:
      window: attention window of each layer; None: 4096, and no window in every fourth layer.
      rope: rotary embedding of layers without a window; `local_rope` is that of the others.
    """
    if window is None:
        window = tuple(None if layer % 4 == 3 else 4096 for layer in range(layers))
    ropes = tuple(rope if seen is None else local_rope for seen in window)
    return olmo2(layers, heads, width, window=window, rope=ropes, **options)


_LONG = RoPEConfig(5e5, scaling=YaRNScaling(8.0, original_length=8192))

SIZES = {
    "olmo2-1b": lambda: olmo2(16, 16, 2048, hidden=8192),
    "olmo2-7b": lambda: olmo2(32, 32, 4096, hidden=11008),
    "olmo2-13b": lambda: olmo2(40, 40, 5120, hidden=13824),
    "olmo2-32b": lambda: olmo2(64, 40, 5120, hidden=27648, kv_heads=8),
    "olmo3-7b": lambda: olmo3(32, 32, 4096, hidden=11008, vocab_size=100_278, max_length=65536, rope=_LONG),
}

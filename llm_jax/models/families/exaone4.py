"""EXAONE 4.0 (LG AI Research 2025, arXiv:2507.11407, section 2.1): norms of the outputs of mixer and ffn, and of
queries and keys per head. In the 32B three of four layers have a window, and only these have rotary embeddings; the
1.2B has no windows.

Initialisation: none is published; that of llama.py is used.
"""

from collections.abc import Sequence
from typing import Any

from llm_jax.layers.attention.attention import QKNormConfig
from llm_jax.layers.norms import RMSNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.layers.positions.rope_scaling import Llama3Scaling
from llm_jax.models.block import Serial
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.llama import llama

_ROPE = RoPEConfig(1e6, scaling=Llama3Scaling(16.0))


def exaone4(
    layers: int,
    heads: int,
    width: int,
    *,
    window: Sequence[int | None] | None = None,
    rope: RoPEConfig = _ROPE,
    epsilon: float = 1e-5,
    **options: Any,
) -> TransformerConfig:
    """An EXAONE 4 of any size; other options are those of `llama`.

    Args:
      window: attention window of each layer; None: no windows.
      rope: rotary embedding of layers with a window, or of all layers if there is no window.
    """
    window = (None,) * layers if window is None else window
    mixed = any(seen is not None for seen in window)
    ropes = tuple(None if mixed and seen is None else rope for seen in window)
    own = {"qk_norm": QKNormConfig(RMSNormConfig(epsilon)), "wiring": Serial(before=False, after=True)}
    limits: dict[str, Any] = {"kv_heads": 8, "vocab_size": 102_400, "window": window, "rope": ropes, "epsilon": epsilon}
    return llama(layers, heads, width, **own, **limits | options)


SIZES = {
    "exaone4-1.2b": lambda: exaone4(30, 32, 2048, hidden=4096, max_length=65536, tied=True),
    "exaone4-32b": lambda: exaone4(
        64, 40, 5120, hidden=27392, max_length=131_072, head_dim=128, window=(4096, 4096, 4096, None) * 16
    ),
}

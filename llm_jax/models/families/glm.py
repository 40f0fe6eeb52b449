"""GLM-4 (GLM Team 2024, arXiv:2406.12793, section 2): half of each head rotated, biases on queries, keys and values.
The models of April 2025 have norms before and after mixer and ffn.

Initialisation: none is published; that of llama.py is used.
"""

from typing import Any

from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.block import Serial
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.llama import llama


def glm(
    layers: int,
    heads: int,
    width: int,
    *,
    head_dim: int = 128,
    rope: RoPEConfig | None = None,
    sandwich: bool = False,
    **options: Any,
) -> TransformerConfig:
    """A GLM-4 of any size; other options are those of `llama`.

    Args:
      rope: None: the leading half of each head is rotated.
      sandwich: whether there are also norms after mixer and ffn.
    """
    rope, wiring = RoPEConfig(features=head_dim // 2) if rope is None else rope, Serial(after=sandwich)
    limits: dict[str, Any] = {"kv_heads": 2, "vocab_size": 151_552, "max_length": 131_072, "epsilon": 1.5625e-7}
    limits |= {"rope": rope, "bias": True, "out_bias": False}
    return llama(layers, heads, width, head_dim=head_dim, wiring=wiring, **limits | options)


SIZES = {
    "glm4-9b": lambda: glm(40, 32, 4096, hidden=13696),
    "glm4-9b-0414": lambda: glm(40, 32, 4096, hidden=13696, max_length=32768, sandwich=True),
}

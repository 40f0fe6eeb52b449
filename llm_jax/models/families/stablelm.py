"""StableLM 3B and 2 1.6B (Tow et al. 2023, huggingface.co/stabilityai/stablelm-3b-4e1t; Bellagente et al. 2024,
arXiv:2402.17834, section 3.1): LLaMA with LayerNorm and a quarter of each head rotated.

Initialisation: none is published; that of llama.py is used.
"""

from typing import Any

from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.block import Parallel, Serial
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.llama import llama


def stablelm(
    layers: int,
    heads: int,
    width: int,
    *,
    rope: RoPEConfig | None = None,
    epsilon: float = 1e-5,
    parallel: bool = False,
    **options: Any,
) -> TransformerConfig:
    """A StableLM of any size; other options are those of `llama`.

    Args:
      rope: None: the leading quarter of each head is rotated.
      parallel: whether attention and ffn are parallel with one norm.
    """
    own: dict[str, Any] = {"norm": LayerNormConfig(epsilon), "wiring": Parallel() if parallel else Serial()}
    rope = RoPEConfig(features=width // heads // 4) if rope is None else rope
    limits: dict[str, Any] = {"vocab_size": 50304, "max_length": 4096, "rope": rope, "out_bias": False}
    return llama(layers, heads, width, **own, **limits | options)


SIZES = {
    "stablelm-3b": lambda: stablelm(32, 32, 2560, hidden=6912),
    "stablelm2-1.6b": lambda: stablelm(24, 32, 2048, hidden=5632, vocab_size=100_352, bias=True),
}

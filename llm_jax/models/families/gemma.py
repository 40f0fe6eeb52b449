"""Gemma 1, 2 and 3 (Gemma Team, arXiv:2403.08295 table 1; arXiv:2408.00118 table 1; arXiv:2503.19786 table 1: text).

All: the scale of a norm is one plus a parameter, token embeddings are multiplied by the square root of the width, the
head is tied. Gemma 2 has soft caps of scores and logits, norms before and after mixer and ffn, and alternating local
and global layers. Gemma 3 normalises queries and keys instead of soft caps, with one global per five local layers.

Initialisation: none is published; that of GPT-2 is used, N(0, 0.02), smaller by 1 / sqrt(2 layers) for matrices that
write to the residual stream.
"""

import math
from typing import Any

from llm_jax.layers.activations import Activation
from llm_jax.layers.attention.attention import AttentionConfig, QKNormConfig
from llm_jax.layers.attention.masks import Causal
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.norms import RMSNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.layers.positions.rope_scaling import LinearScaling
from llm_jax.models.block import BlockConfig, Serial
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import decoder, residual_init
from llm_jax.models.heads import TiedHead

LOCAL_ROPE = RoPEConfig(10_000.0)


def gemma(
    layers: int,
    heads: int,
    width: int,
    *,
    hidden: int,
    kv_heads: int,
    head_dim: int = 256,
    vocab_size: int = 256_000,
    max_length: int = 8192,
    windows: tuple[int | None, ...] = (None,),
    rope: RoPEConfig = RoPEConfig(),  # noqa: B008
    local_rope: RoPEConfig = LOCAL_ROPE,
    scale: float | None = None,
    softcaps: tuple[float | None, float | None] = (None, None),
    qk_norm: bool = False,
    sandwich: bool = False,
    activation: Activation = "gelu_tanh",
    epsilon: float = 1e-6,
    bias: bool = False,
) -> TransformerConfig:
    """A Gemma of any kind and size.

    Args:
      windows: attention windows of the layers, in turn; None: no window.
      rope: rotary embedding of the global layers; `local_rope` is that of the others.
      scale: scale of the scores; None: 1 / sqrt(head_dim).
      softcaps: soft caps of scores and of logits.
    """
    norm, out_init = RMSNormConfig(epsilon, from_zero=True), residual_init(layers)
    ffn = GLUConfig(hidden, activation=activation, out_init=out_init)

    def block(window: int | None) -> BlockConfig:
        mixer = AttentionConfig(
            heads,
            head_dim,
            kv_heads,
            Causal(window),
            position=rope if window is None else local_rope,
            scores=ScoresConfig(head_dim**-0.5 if scale is None else scale, softcaps[0]),
            qk_norm=QKNormConfig(norm) if qk_norm else None,
            bias=bias,
            out_init=out_init,
        )
        return BlockConfig(mixer, ffn, norm, Serial(before=True, after=sandwich))

    blocks = tuple(block(windows[layer % len(windows)]) for layer in range(layers))
    embed = EmbedConfig(scale=math.sqrt(width))
    return decoder(blocks, width, vocab_size, max_length, norm, embed, TiedHead(softcaps[1]))


def gemma2(layers: int, heads: int, width: int, **options: Any) -> TransformerConfig:
    """A Gemma 2; options are those of `gemma`."""
    return gemma(layers, heads, width, windows=(4096, None), softcaps=(50.0, 30.0), sandwich=True, **options)


def gemma3(
    layers: int, heads: int, width: int, *, window: int = 1024, factor: float = 8.0, **options: Any
) -> TransformerConfig:
    """A Gemma 3 for text. Rotary frequencies of global layers are divided by `factor`, for 128k tokens. Other options
    are those of `gemma`."""
    rope = RoPEConfig(1e6, scaling=LinearScaling(factor)) if factor != 1 else RoPEConfig(1e6)
    limits: dict[str, Any] = {"vocab_size": 262_144, "max_length": 32768 if factor == 1 else 131_072, "rope": rope}
    own: dict[str, Any] = {"windows": (window,) * 5 + (None,), "qk_norm": True, "sandwich": True}
    return gemma(layers, heads, width, **limits, **own, **options)


SIZES = {
    "gemma-2b": lambda: gemma(18, 8, 2048, hidden=16384, kv_heads=1),
    "gemma-7b": lambda: gemma(28, 16, 3072, hidden=24576, kv_heads=16),
    "gemma2-2b": lambda: gemma2(26, 8, 2304, hidden=9216, kv_heads=4),
    "gemma2-9b": lambda: gemma2(42, 16, 3584, hidden=14336, kv_heads=8),
    "gemma2-27b": lambda: gemma2(46, 32, 4608, hidden=36864, kv_heads=16, head_dim=128, scale=144**-0.5),
    "gemma3-1b": lambda: gemma3(26, 4, 1152, hidden=6912, kv_heads=1, window=512, factor=1.0),
    "gemma3-4b": lambda: gemma3(34, 8, 2560, hidden=10240, kv_heads=4),
    "gemma3-12b": lambda: gemma3(48, 16, 3840, hidden=15360, kv_heads=8),
    "gemma3-27b": lambda: gemma3(62, 32, 5376, hidden=21504, kv_heads=16, head_dim=128, scale=168**-0.5),
}

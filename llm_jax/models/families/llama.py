"""LLaMA 1, 2 and 3 and Code Llama, and the decoder on which many families are based.

Touvron et al. 2023, arXiv:2302.13971 table 2 and arXiv:2307.09288 table 1; Llama Team 2024, arXiv:2407.21783 table 3;
Roziere et al. 2023, arXiv:2308.12950.

Initialisation: none is published. As in GPT-2: N(0, 0.02), smaller by 1 / sqrt(2 layers) for matrices that write to
the residual stream; 0.02 is the `initializer_range` of the published config.json files.
"""

import functools
from collections.abc import Sequence
from typing import Any

from llm_jax.core.checks import check, check_divides
from llm_jax.layers.activations import Activation
from llm_jax.layers.attention.attention import AttentionConfig, QKNormConfig
from llm_jax.layers.attention.masks import Causal
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.initialisers import Init, Normal
from llm_jax.layers.norms import Norm, RMSNormConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.layers.positions.rope_scaling import Llama3Scaling
from llm_jax.models.block import BlockConfig, Parallel, Serial
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import decoder, head_config, residual_init

Rotations = RoPEConfig | None | Sequence[RoPEConfig | None]
"""Rotary embedding of all layers, or of each."""


def llama(
    layers: int,
    heads: int,
    width: int,
    *,
    hidden: int,
    kv_heads: int | None = None,
    vocab_size: int = 32000,
    max_length: int = 2048,
    rope: Rotations = RoPEConfig(),  # noqa: B008
    epsilon: float = 1e-6,
    tied: bool = False,
    head_dim: int | None = None,
    bias: bool = False,
    out_bias: bool | None = None,
    activation: Activation = "silu",
    ffn_bias: bool = False,
    window: int | Sequence[int | None] | None = None,
    qk_norm: QKNormConfig | None = None,
    scores: ScoresConfig = ScoresConfig(),  # noqa: B008
    clip: float | None = None,
    norm: Norm | None = None,
    wiring: Serial | Parallel = Serial(),  # noqa: B008
    init: Init = Normal(),  # noqa: B008
    out_init: Init | None = None,
) -> TransformerConfig:
    """A LLaMA of any size; `kv_heads` None means as many as heads, `head_dim` None the width over the heads.

    The arguments after `tied` are for families derived from LLaMA.

    Args:
      rope: rotary embedding of all layers, or of each; None: no positions.
      window: attention window of all layers, or of each; None: no window.
      norm: norm of the blocks and final norm; None: RMS norm with `epsilon`.
      init: initialiser of matrices and token embeddings.
      out_init: initialiser of matrices that write to the residual stream; None: as in GPT-2.
    """
    if head_dim is None:
        check_divides(heads, width, "heads", "width")
    windows = window if isinstance(window, Sequence) else (window,) * layers
    ropes = rope if isinstance(rope, Sequence) else (rope,) * layers
    for name, found in (("window", windows), ("rope", ropes)):
        check(
            len(found) == layers,
            f"{name} has {len(found)} entries and there are {layers} layers: one per layer is required",
        )
    norm, out_init = norm or RMSNormConfig(epsilon), out_init or residual_init(layers)
    ffn = GLUConfig(hidden, activation, ffn_bias, init, out_init)

    attention: dict[str, Any] = {"scores": scores, "qk_norm": qk_norm, "clip": clip, "bias": bias}
    attention |= {"out_bias": out_bias, "init": init, "out_init": out_init}
    sizes = (heads, head_dim or width // heads, heads if kv_heads is None else kv_heads)

    @functools.cache  # layers of one kind share a config
    def block(window: int | None, rope: RoPEConfig | None) -> BlockConfig:
        return BlockConfig(AttentionConfig(*sizes, Causal(window), rope, **attention), ffn, norm, wiring)

    blocks = tuple(block(*layer) for layer in zip(windows, ropes, strict=True))
    return decoder(blocks, width, vocab_size, max_length, norm, EmbedConfig(init), head_config(tied, init))


def llama2(layers: int, heads: int, width: int, **options: Any) -> TransformerConfig:
    """A LLaMA 2; options are those of `llama`."""
    return llama(layers, heads, width, max_length=4096, epsilon=1e-5, **options)


def code_llama(layers: int, heads: int, width: int, **options: Any) -> TransformerConfig:
    """A Code Llama: LLaMA 2 with a larger rotary base, for long files (section 2.4); options are those of `llama`."""
    long: dict[str, Any] = {"vocab_size": 32016, "max_length": 16384, "rope": RoPEConfig(1e6), "epsilon": 1e-5}
    return llama(layers, heads, width, **long, **options)


def llama3(
    layers: int, heads: int, width: int, *, long: bool = False, factor: float = 8.0, **options: Any
) -> TransformerConfig:
    """A LLaMA 3, or with `long` a 3.1 or 3.2, whose low rotary frequencies are divided by `factor`; options are those
    of `llama`."""
    rope = RoPEConfig(5e5, scaling=Llama3Scaling(factor)) if long else RoPEConfig(5e5)
    limits: dict[str, Any] = {"vocab_size": 128_256, "max_length": 131_072 if long else 8192, "rope": rope}
    return llama(layers, heads, width, kv_heads=8, epsilon=1e-5, **limits, **options)


SIZES = {
    "llama-7b": lambda: llama(32, 32, 4096, hidden=11008),
    "llama-13b": lambda: llama(40, 40, 5120, hidden=13824),
    "llama-33b": lambda: llama(60, 52, 6656, hidden=17920),
    "llama-65b": lambda: llama(80, 64, 8192, hidden=22016),
    "llama2-7b": lambda: llama2(32, 32, 4096, hidden=11008),
    "llama2-13b": lambda: llama2(40, 40, 5120, hidden=13824),
    "llama2-70b": lambda: llama2(80, 64, 8192, hidden=28672, kv_heads=8),
    "code-llama-7b": lambda: code_llama(32, 32, 4096, hidden=11008),
    "code-llama-13b": lambda: code_llama(40, 40, 5120, hidden=13824),
    "llama3-8b": lambda: llama3(32, 32, 4096, hidden=14336),
    "llama3-70b": lambda: llama3(80, 64, 8192, hidden=28672),
    "llama3.1-8b": lambda: llama3(32, 32, 4096, hidden=14336, long=True),
    "llama3.1-70b": lambda: llama3(80, 64, 8192, hidden=28672, long=True),
    "llama3.1-405b": lambda: llama3(126, 128, 16384, hidden=53248, long=True),
    "llama3.2-1b": lambda: llama3(16, 32, 2048, hidden=8192, long=True, factor=32.0, tied=True),
    "llama3.2-3b": lambda: llama3(28, 24, 3072, hidden=8192, long=True, factor=32.0, tied=True),
}

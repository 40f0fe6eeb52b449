"""Checkpoints of variants of LLaMA: OLMo 3, SmolLM3 and EXAONE 4, whose layers differ in positions; ERNIE 4.5, GLM and
GLM-4, whose RoPE rotates neighbouring features together."""

import functools
from typing import Any

from llm_jax.core.checks import check
from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Arguments, Field, Pair, Rope, Table, defaults
from llm_jax.interop.hf_llama import (
    BEFORE,
    BIAS,
    POST_NORM,
    PRE_NORM,
    UNROTATED,
    fused_ffn,
    tensors,
    write_ropes,
)
from llm_jax.interop.rope_options import longest, read_rope, read_ropes_by_kind, write_rope, written_length
from llm_jax.interop.settings import Settings, layer_types, layer_windows
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.exaone4 import exaone4
from llm_jax.models.families.glm import glm
from llm_jax.models.families.llama import llama
from llm_jax.models.families.olmo2 import olmo3

_WINDOW = 4096
"""Window of a config.json that states none, in tokens."""


def read_windows(settings: Settings, layers: int, kinds: list[str]) -> tuple[int | None, ...]:
    """The window of each layer in tokens, from `layer_types`, or from `kinds` if the file has none."""
    window = settings.stated("sliding_window", default=_WINDOW)
    return layer_windows(settings.given("layer_types", default=kinds), layers, window)


def write_windows(config: TransformerConfig) -> dict[str, Any]:
    """The options that `read_windows` reads."""
    windows = parts.windows(config)
    used = next((window for window in windows if window is not None), None)
    return {"sliding_window": used, "layer_types": layer_types(windows)}


def alternating(layers: int, period: int) -> list[str]:
    """The kind of each layer, where every `period`-th has full attention."""
    return ["sliding_attention" if number % period else "full_attention" for number in range(1, layers + 1)]


def _read_olmo3(settings: Settings, found: Arguments) -> Arguments:
    layers, length = found["layers"], settings.need("max_position_embeddings")
    # transformers reads `rope_theta` for layers with full attention only.
    bases = (settings.given("rope_theta", default=5e5), 5e5)
    rope, local = read_ropes_by_kind(settings, found["head_dim"], length, bases)
    window = read_windows(settings, layers, alternating(layers, 4))
    return {"rope": rope, "local_rope": local, "window": window, "max_length": length}


def _write_olmo3(config: TransformerConfig) -> dict[str, Any]:
    written = write_ropes(config) | write_windows(config)
    # transformers' class requires a window even if no layer uses it.
    return written if written["sliding_window"] is not None else written | {"sliding_window": _WINDOW}


def _ropes(config: TransformerConfig) -> list[Any]:
    return [parts.attention_of(layer.block).position for layer in parts.layers(config)]


def write_some_rope(config: TransformerConfig) -> dict[str, Any]:
    """The rotary positions of the layers that have them. ValueError if no layer has them."""
    mixers = [parts.attention_of(layer.block) for layer in parts.layers(config)]
    rope = parts.rope_of(next((mixer for mixer in mixers if mixer.position is not None), mixers[0]))
    return write_rope(rope) | {"max_position_embeddings": written_length(rope, config.max_length)}


def _read_smollm3(settings: Settings, found: Arguments) -> Arguments:
    layers, length = found["layers"], settings.need("max_position_embeddings")
    every = settings.given("no_rope_layer_interval", default=4)
    rotated = settings.given("no_rope_layers", default=[int(number % every != 0) for number in range(1, layers + 1)])
    check(
        len(rotated) >= layers,
        f"config.json has {len(rotated)} no_rope_layers and {layers} layers: one per layer is required",
    )
    rope, window = read_rope(settings, found["head_dim"], length, 2e6), settings.given("sliding_window")
    local = settings.given("use_sliding_window", default=False) and window is not None
    kinds = ["sliding_attention" if local and not turned else "full_attention" for turned in rotated[:layers]]
    windows = layer_windows(settings.given("layer_types", default=kinds), layers, window)
    ropes = tuple(rope if turned else None for turned in rotated[:layers])
    return {"rope": ropes, "window": windows, "max_length": longest(rope, length)}


def _write_smollm3(config: TransformerConfig) -> dict[str, Any]:
    written = write_some_rope(config) | write_windows(config)
    turned = [int(rope is not None) for rope in _ropes(config)]
    return written | {"no_rope_layers": turned, "use_sliding_window": written["sliding_window"] is not None}


def _read_exaone4(settings: Settings, found: Arguments) -> Arguments:
    layers, length = found["layers"], settings.need("max_position_embeddings")
    kinds, rope = ["full_attention"] * layers, read_rope(settings, found["head_dim"], length)
    if settings.stated("sliding_window", default=_WINDOW) is not None and settings.given("layer_types") is None:
        # Only without `layer_types`: published files that have both give the pattern as letters, such as "LLLG".
        kinds = alternating(layers, settings.given("sliding_window_pattern", default=4))
    return {"rope": rope, "window": read_windows(settings, layers, kinds), "max_length": longest(rope, length)}


def _write_exaone4(config: TransformerConfig) -> dict[str, Any]:
    return write_some_rope(config) | write_windows(config)


_NEIGHBOURS = functools.partial(tensors, before=BEFORE, neighbours=True)
_GLM = functools.partial(tensors, ffn=fused_ffn, neighbours=True)
_GLM4 = functools.partial(_GLM, before=BEFORE, after=("post_self_attn_layernorm", "post_mlp_layernorm"))
_ERNIE: Table = (
    *defaults(UNROTATED, kv_heads=2, head_dim=128, epsilon=1e-5, tied=True),
    Rope(base=5e5),
    Field("use_bias", "bias", False),
)
_GLM_FIELDS: Table = (
    *defaults(UNROTATED, kv_heads=2, head_dim=128, epsilon=1.5625e-7),
    Rope(share=0.5),
    Field("attention_bias", "bias", True),
)


def _ernie(*, bias: bool, **given: Any) -> TransformerConfig:
    """A LLaMA with biases in all linear layers or in none."""
    return llama(bias=bias, ffn_bias=bias, **given)


FAMILIES = (
    Family(
        "olmo3",
        "Olmo3ForCausalLM",
        olmo3,
        (*defaults(UNROTATED, epsilon=1e-5), BIAS, Pair(_read_olmo3, _write_olmo3)),
        POST_NORM,
        prefix="model.",
    ),
    Family(
        "smollm3",
        "SmolLM3ForCausalLM",
        llama,
        (
            *defaults(UNROTATED, kv_heads=4, tied=True),
            BIAS,
            Field("mlp_bias", "ffn_bias", False),
            Pair(_read_smollm3, _write_smollm3),
        ),
        PRE_NORM,
        prefix="model.",
    ),
    Family(
        "exaone4",
        "Exaone4ForCausalLM",
        exaone4,
        (*defaults(UNROTATED, kv_heads=32, epsilon=1e-5), Pair(_read_exaone4, _write_exaone4)),
        POST_NORM,
        prefix="model.",
    ),
    Family("ernie4_5", "Ernie4_5ForCausalLM", _ernie, _ERNIE, _NEIGHBOURS, prefix="model."),
    Family("glm", "GlmForCausalLM", glm, _GLM_FIELDS, functools.partial(_GLM, before=BEFORE), prefix="model."),
    Family(
        "glm4",
        "Glm4ForCausalLM",
        functools.partial(glm, sandwich=True),
        _GLM_FIELDS,
        _GLM4,
        prefix="model.",
    ),
)

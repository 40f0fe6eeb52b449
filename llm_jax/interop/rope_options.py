"""The options of rotary positions in published config files.

Older files have `rope_theta`, `rope_scaling` and `partial_rotary_factor`. Newer files have all three in
`rope_parameters`.
"""

import dataclasses
import math
from typing import Any

from llm_jax.core.checks import check, given
from llm_jax.interop.options import LARGEST
from llm_jax.interop.settings import Settings
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.layers.positions.rope_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    Scaling,
    Unscaled,
    YaRNScaling,
)

KINDS = ("full_attention", "sliding_attention")
"""`layer_types` of layers with full attention and with a window."""


def read_rope(settings: Settings, head_dim: int, max_length: int, base: float = 10_000.0) -> RoPEConfig:
    """The RoPE of a config.json whose family rotates whole heads.

    Args:
      base: default of the base.

    Raises:
      ValueError: for a scaling that is not supported or incomplete, or a partial rotation.
    """
    rope = read_partial_rope(settings, head_dim, max_length, base)
    # transformers' classes of these families read the factor only with scaling, and their frequencies then have the
    # wrong size for a head.
    check(
        rope.features is None or isinstance(rope.scaling, Unscaled),
        f"config.json rotates {rope.features} of {head_dim} features: this family rotates all; remove the option",
    )
    return rope if rope.features is None else dataclasses.replace(rope, base=_base(settings, base), features=None)


def read_partial_rope(
    settings: Settings, head_dim: int, max_length: int, base: float = 10_000.0, share: float = 1.0
) -> RoPEConfig:
    """As `read_rope`, for a family that may rotate a part of each head.

    Args:
      share: default of the rotated share of a head.
    """
    rope, base = settings.nested("rope_scaling", "rope_parameters"), _base(settings, base)
    older = settings.given("partial_rotary_factor", "rotary_pct", default=share)
    features = int(head_dim * rope.given("partial_rotary_factor", default=older))
    scaling = _scaling(rope, max_length, settings.given("original_max_position_embeddings"))
    if features % 2 and features < head_dim:
        # For an odd number n transformers rotates n + 1 features with frequencies base^(-2i/n). This is a rotation of
        # n + 1 features with another base.
        check(
            isinstance(scaling, Unscaled | LinearScaling),
            f"config.json rotates {features} features with {type(scaling).__name__}: the number must be even",
        )
        base, features = base ** ((features + 1) / features), features + 1
    scaled = isinstance(scaling, YaRNScaling)
    check(base > 1 or not scaled, f"config.json has rope_theta = {base}: YaRN requires more than 1")
    return RoPEConfig(base, None if features == head_dim else features, scaling)


def read_ropes_by_kind(
    settings: Settings, head_dim: int, max_length: int, bases: tuple[float, float]
) -> tuple[RoPEConfig, RoPEConfig]:
    """The RoPE of layers with full attention and of layers with a window. `rope_parameters` has options for both kinds,
    `rope_scaling` only for full attention.

    Args:
      bases: default base of each kind.
    """
    full, sliding = (settings.nested("rope_parameters").given(kind) for kind in KINDS)
    stated = (full or settings.given("rope_scaling"), sliding)
    found = (
        read_rope(Settings({"rope_parameters": options}), head_dim, max_length, base)
        for options, base in zip(stated, bases, strict=True)
    )
    return next(found), next(found)


def _base(settings: Settings, default: float) -> float:
    older = settings.given("rope_theta", "rotary_emb_base", default=default)
    return float(settings.nested("rope_scaling", "rope_parameters").given("rope_theta", default=older))


def write_rope(rope: RoPEConfig) -> dict[str, Any]:
    """The options that `read_rope` reads, in the older and in the newer form.

    Raises:
      ValueError: if only a part of each head is rotated.
    """
    check(rope.features is None, f"{rope.features} features are rotated: this family rotates all; set features to None")
    scaling = _written(rope.scaling)
    parameters = {"rope_theta": rope.base, **(scaling or {"rope_type": "default"})}
    return {"rope_theta": rope.base, "rope_scaling": scaling, "rope_parameters": parameters}


def write_partial_rope(rope: RoPEConfig | None, head_dim: int) -> dict[str, Any]:
    """The options that `read_partial_rope` reads. ValueError for a model without rotary positions."""
    rope = given(rope, "the model has no rotary positions: this family requires RoPEConfig")
    features = rope.features or head_dim
    share = features / head_dim
    if int(head_dim * share) != features:
        share = (features + 0.5) / head_dim  # readers truncate the product
    written = write_rope(dataclasses.replace(rope, features=None))
    scaling = written["rope_scaling"] and written["rope_scaling"] | {"partial_rotary_factor": share}
    parameters = written["rope_parameters"] | {"partial_rotary_factor": share}
    return written | {"rope_scaling": scaling, "rope_parameters": parameters, "partial_rotary_factor": share}


def longest(rope: RoPEConfig, max_length: int) -> int:
    """Maximum sequence length of a model whose config.json has `max_position_embeddings` = `max_length`.

    Linear and dynamic scaling multiply it. YaRN reaches `factor` times its original length; files state either the
    scaled length (DeepSeek) or the original (Qwen 2.5). LLaMA 3 and LongRoPE state the scaled length.
    """
    reached = max_length
    match rope.scaling:
        case LinearScaling(factor) | DynamicScaling(factor):
            reached = max(max_length, int(max_length * factor))
        case YaRNScaling(factor, original):
            reached = max(max_length, int(original * factor))
    check(
        reached <= LARGEST,
        f"config.json has {rope.scaling}, which reaches {reached} tokens: at most {LARGEST}; reduce the factor",
    )
    return reached


def written_length(rope: RoPEConfig, max_length: int) -> int:
    """The `max_position_embeddings` for which `longest` returns `max_length`.

    Raises:
      ValueError: if there is none.
    """
    stated = max_length
    if isinstance(rope.scaling, LinearScaling | DynamicScaling) and rope.scaling.factor > 1:
        stated = math.ceil(max_length / rope.scaling.factor)
    found = longest(rope, stated)
    check(
        found == max_length,
        f"max_length is {max_length} and {rope.scaling} reaches {found}: set max_length to that, or change the factor",
    )
    return stated


def _scaling(rope: Settings, max_length: int, original: int | None) -> Scaling:
    first: int = original or rope.given("original_max_position_embeddings", default=max_length)
    match kind := rope.given("rope_type", "type", default="default"):
        case "default":
            return Unscaled()
        case "linear":
            return LinearScaling(rope.need("factor"))
        case "dynamic":
            return DynamicScaling(rope.need("factor"), max_length)
        case "llama3":
            limits = rope.need("low_freq_factor"), rope.need("high_freq_factor")
            return Llama3Scaling(rope.need("factor"), *limits, first)
        case "yarn":
            factor = rope.given("factor", default=max_length / first)
            limits = rope.given("beta_fast", default=32.0), rope.given("beta_slow", default=1.0)
            magnitude = _yarn_magnitude(rope, factor)
            return YaRNScaling(factor, first, *limits, magnitude, rope.given("truncate", default=True))
        case "longrope" | "su":
            check(
                first > 1, f"config.json has original_max_position_embeddings = {first}: LongRoPE requires more than 1"
            )
            factor = rope.given("factor", default=max_length / first)
            default = math.sqrt(1 + math.log(factor) / math.log(first)) if factor > 1 else 1.0
            short, long = (tuple(rope.need(name)) for name in ("short_factor", "long_factor"))
            return LongRoPEScaling(short, long, first, rope.given("attention_factor", default=default))
    supported = "default, linear, dynamic, llama3, yarn, longrope"
    raise ValueError(f"config.json has rope type {kind!r}: supported are {supported}")


def _yarn_magnitude(rope: Settings, factor: float) -> float | None:
    scales = rope.given("mscale"), rope.given("mscale_all_dim")
    if rope.given("attention_factor") is not None:
        return rope.given("attention_factor")
    if not all(scales):
        return None if factor > 1 else 1.0
    own, all_features = (0.1 * scale * math.log(max(factor, 1)) + 1 for scale in scales)
    return own / all_features


def _written(scaling: Scaling) -> dict[str, Any] | None:
    match scaling:
        case Unscaled():
            return None
        case LinearScaling(factor):
            return {"rope_type": "linear", "factor": factor}
        case DynamicScaling(factor, original):
            return {"rope_type": "dynamic", "factor": factor, "original_max_position_embeddings": original}
        case Llama3Scaling(factor, low, high, original):
            limits = {"low_freq_factor": low, "high_freq_factor": high}
            return {"rope_type": "llama3", "factor": factor, **limits, "original_max_position_embeddings": original}
        case YaRNScaling(factor, original, fast, slow, magnitude, truncate):
            written = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
            written |= {"beta_fast": fast, "beta_slow": slow, "truncate": truncate}
            return written if magnitude is None else written | {"attention_factor": magnitude}
        case LongRoPEScaling(short, long, original, magnitude):
            return {
                "rope_type": "longrope",
                "short_factor": list(short),
                "long_factor": list(long),
                "original_max_position_embeddings": original,
                "attention_factor": magnitude,
            }

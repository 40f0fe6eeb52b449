"""Checkpoints of Gemma 1, 2 and 3 (text)."""

import functools
from typing import Any

from llm_jax.core.checks import check, given
from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.hf_llama import PRE_NORM, tensors
from llm_jax.interop.rope import longest, read_rope, write_rope, written_length
from llm_jax.interop.settings import Settings, layer_types, layer_windows
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.gemma import gemma
from llm_jax.models.heads import TiedHead


def _read(settings: Settings, max_length: int, **of_kind: Any) -> TransformerConfig:
    """What all of them have in common."""
    settings.only("use_bidirectional_attention", False, default=False)
    head_dim = settings.given("head_dim", default=256)
    config = gemma(
        settings.need("num_hidden_layers"),
        settings.need("num_attention_heads"),
        settings.need("hidden_size"),
        hidden=settings.need("intermediate_size"),
        kv_heads=settings.need("num_key_value_heads"),
        head_dim=head_dim,
        vocab_size=settings.need("vocab_size"),
        max_length=max_length,
        epsilon=settings.given("rms_norm_eps", default=1e-6),
        bias=settings.given("attention_bias", default=False),
        **of_kind,
    )
    return parts.with_tied(config, settings.given("tie_word_embeddings", default=True))


def _read_1(settings: Settings) -> TransformerConfig:
    # Published files say "gelu" and mean its tanh form, which is what transformers computes.
    if settings.given("hidden_act", default="gelu") != "gelu":
        _check_activation(settings, "hidden_act")
    return _read(settings, **_one_rope(settings))


def _read_2(settings: Settings) -> TransformerConfig:
    _check_activation(settings, "hidden_activation")
    softcaps = settings.stated("attn_logit_softcapping", 50.0), settings.stated("final_logit_softcapping", 30.0)
    return _read(
        settings,
        **_one_rope(settings),
        windows=_windows(settings, 2),
        scale=_scale(settings),
        softcaps=softcaps,
        sandwich=True,
    )


def _read_3(settings: Settings) -> TransformerConfig:
    _check_activation(settings, "hidden_activation")
    return _read(
        settings,
        # The scaling of global layers brings them to this length, which local layers have without it.
        settings.need("max_position_embeddings"),
        rope=_rope_of_kind(settings, "full_attention", settings.given("rope_theta", default=1e6)),
        local_rope=_rope_of_kind(settings, "sliding_attention", settings.given("rope_local_base_freq", default=1e4)),
        windows=_windows(settings, settings.given("sliding_window_pattern", default=6)),
        scale=_scale(settings),
        # Its attn_logit_softcapping does nothing in transformers.
        softcaps=(None, settings.given("final_logit_softcapping")),
        sandwich=True,
        qk_norm=True,
    )


def _check_activation(settings: Settings, name: str) -> None:
    activation = settings.activation(name, default="gelu_pytorch_tanh")
    check(activation == "gelu_tanh", f"config.json has {name} = {settings.given(name)!r}: Gemma has gelu_pytorch_tanh")


def _one_rope(settings: Settings) -> dict[str, Any]:
    head_dim, length = settings.given("head_dim", default=256), settings.need("max_position_embeddings")
    rope = read_rope(settings, head_dim, length)
    return {"rope": rope, "local_rope": rope, "max_length": longest(rope, length)}


def _rope_of_kind(settings: Settings, kind: str, base: float) -> RoPEConfig:
    """Of the layers of a kind: `rope_parameters` has options for each, `rope_scaling` those of global layers only."""
    head_dim, length = settings.given("head_dim", default=256), settings.need("max_position_embeddings")
    by_kind = settings.nested("rope_parameters").given(kind)
    older = settings.given("rope_scaling") if kind == "full_attention" else None
    return read_rope(Settings({"rope_parameters": by_kind or older}), head_dim, length, base)


def _windows(settings: Settings, period: int) -> tuple[int | None, ...]:
    """Tokens that each layer sees: by `layer_types`, or all before in every `period`-th layer."""
    layers, window = settings.need("num_hidden_layers"), settings.given("sliding_window", default=4096)
    default = ["full_attention" if number % period == 0 else "sliding_attention" for number in range(1, layers + 1)]
    return layer_windows(settings.given("layer_types", default=default), layers, window)


def _scale(settings: Settings) -> float:
    return settings.given("query_pre_attn_scalar", default=256) ** -0.5


def _write(config: TransformerConfig) -> dict[str, Any]:
    """What all of them have in common, but for rotary positions."""
    block = parts.first(config)
    mixer = parts.attention_of(block)
    return {
        "num_hidden_layers": config.depth,
        "num_attention_heads": mixer.heads,
        "num_key_value_heads": mixer.kv_heads,
        "head_dim": mixer.head_dim,
        "hidden_size": config.width,
        "intermediate_size": parts.dense_of(block).hidden,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": parts.norm_of(block).epsilon,
        "attention_bias": mixer.bias,
        "tie_word_embeddings": isinstance(config.head, TiedHead),
    }


def _write_1(config: TransformerConfig) -> dict[str, Any]:
    return _write(config) | _write_one_rope(config)


def _write_2(config: TransformerConfig) -> dict[str, Any]:
    return _write_layers(config) | _write_one_rope(config)


def _write_one_rope(config: TransformerConfig) -> dict[str, Any]:
    rope = parts.rope_of(parts.attention_of(parts.first(config)))
    return write_rope(rope) | {"max_position_embeddings": written_length(rope, config.max_length)}


def _write_3(config: TransformerConfig) -> dict[str, Any]:
    ropes = {kind: _rope(config, local=kind == "sliding_attention") for kind in ("full_attention", "sliding_attention")}
    written = {kind: write_rope(rope)["rope_parameters"] for kind, rope in ropes.items() if rope}
    return _write_layers(config) | {"rope_parameters": written}


def _write_layers(config: TransformerConfig) -> dict[str, Any]:
    """What Gemma 2 and 3 say beyond Gemma 1."""
    windows = [parts.window_of(parts.attention_of(place.block)) for place in parts.places(config)]
    scores = parts.attention_of(parts.first(config)).scores
    scale = given(scores.scale, "scores.scale is None: Gemma's is a number")
    return _write(config) | {
        "layer_types": layer_types(windows),
        "sliding_window": next((window for window in windows if window is not None), None),
        "query_pre_attn_scalar": round(scale**-2),
        "attn_logit_softcapping": scores.softcap,
        "final_logit_softcapping": parts.head_of(config).softcap,
    }


def _rope(config: TransformerConfig, local: bool) -> RoPEConfig | None:
    """The rotary positions of layers with a window, or of those without; None if there are no such layers."""
    mixers = (parts.attention_of(place.block) for place in parts.places(config))
    return next((parts.rope_of(mixer) for mixer in mixers if (parts.window_of(mixer) is not None) == local), None)


_AROUND = functools.partial(
    tensors,
    before=("input_layernorm", "pre_feedforward_layernorm"),
    after=("post_attention_layernorm", "post_feedforward_layernorm"),
)
FAMILIES = (
    Family("gemma", "GemmaForCausalLM", _read_1, _write_1, PRE_NORM, prefix="model."),
    Family("gemma2", "Gemma2ForCausalLM", _read_2, _write_2, _AROUND, prefix="model."),
    Family("gemma3_text", "Gemma3ForCausalLM", _read_3, _write_3, _AROUND, prefix="model."),
)

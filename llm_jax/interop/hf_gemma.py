"""Checkpoints of Gemma 1, 2 and 3 (text)."""

import functools
from typing import Any

from llm_jax.core.checks import check, given
from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Arguments, Field, Only, Pair, Rope, Table, tying
from llm_jax.interop.hf_llama import PRE_NORM, tensors, write_ropes
from llm_jax.interop.rope_options import read_ropes_by_kind
from llm_jax.interop.settings import Settings, layer_types, layer_windows
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.gemma import gemma

_COMMON: Table = (
    Only("use_bidirectional_attention", False),
    Field("num_hidden_layers", "layers"),
    Field("num_attention_heads", "heads"),
    Field("num_key_value_heads", "kv_heads"),
    Field("hidden_size", "width"),
    Field("head_dim", "head_dim", 256),
    Field("intermediate_size", "hidden"),
    Field("vocab_size", "vocab_size"),
    Field("rms_norm_eps", "epsilon", 1e-6),
    Field("attention_bias", "bias", False),
    Field("tie_word_embeddings", "tied", True),
)


def _activation(name: str, default: str = "gelu_pytorch_tanh") -> Pair:
    """All Gemmas have one activation, the tanh form of GELU. Published files of Gemma 1 state "gelu" for it, and
    transformers computes the tanh form."""

    def read(settings: Settings, found: Arguments) -> Arguments:
        if settings.given(name, default=default) != "gelu" or default != "gelu":
            activation = settings.activation(name, default="gelu_pytorch_tanh")
            stated = settings.given(name)
            check(activation == "gelu_tanh", f"config.json has {name} = {stated!r}: Gemma requires gelu_pytorch_tanh")
        return {}

    return Pair(read, lambda config: dict.fromkeys(("hidden_act", "hidden_activation"), "gelu_pytorch_tanh"))


def _windows(period: int | None) -> Pair:
    """The window of each layer: from `layer_types`, or full attention in every `period`-th layer; None: the period of
    the file."""

    def read(settings: Settings, found: Arguments) -> Arguments:
        layers, window = found["layers"], settings.given("sliding_window", default=4096)
        every = period or settings.given("sliding_window_pattern", default=6)
        default = ["full_attention" if number % every == 0 else "sliding_attention" for number in range(1, layers + 1)]
        return {"windows": layer_windows(settings.given("layer_types", default=default), layers, window)}

    def write(config: TransformerConfig) -> dict[str, Any]:
        windows = parts.windows(config)
        stated = next((window for window in windows if window is not None), None)
        return {"layer_types": layer_types(windows), "sliding_window": stated}

    return Pair(read, write)


def _read_scale(settings: Settings, found: Arguments) -> Arguments:
    return {"scale": settings.given("query_pre_attn_scalar", default=256) ** -0.5}


def _write_scale(config: TransformerConfig) -> dict[str, Any]:
    scale = parts.attention_of(parts.first(config)).scores.scale
    return {"query_pre_attn_scalar": round(given(scale, "scores.scale is None: Gemma requires a number") ** -2)}


def _read_softcaps(settings: Settings, found: Arguments) -> Arguments:
    caps = settings.stated("attn_logit_softcapping", 50.0), settings.stated("final_logit_softcapping", 30.0)
    return {"softcaps": caps}


def _read_last_softcap(settings: Settings, found: Arguments) -> Arguments:
    # transformers ignores the attn_logit_softcapping of Gemma 3.
    return {"softcaps": (None, settings.given("final_logit_softcapping"))}


def _write_softcaps(config: TransformerConfig) -> dict[str, Any]:
    scores = parts.attention_of(parts.first(config)).scores
    return {"attn_logit_softcapping": scores.softcap, "final_logit_softcapping": parts.head_of(config).softcap}


def _read_ropes(settings: Settings, found: Arguments) -> Arguments:
    """The maximum length is that of the file: global layers reach it by scaling, local layers without."""
    bases = settings.given("rope_theta", default=1e6), settings.given("rope_local_base_freq", default=1e4)
    length = settings.need("max_position_embeddings")
    rope, local = read_ropes_by_kind(settings, found["head_dim"], length, bases)
    return {"rope": rope, "local_rope": local, "max_length": length}


def _one_rope(*, rope: RoPEConfig, **given: Any) -> TransformerConfig:
    """A Gemma with the same RoPE in all layers."""
    return gemma(rope=rope, local_rope=rope, **given)


_GEMMA2 = functools.partial(_one_rope, sandwich=True)
_GEMMA3 = functools.partial(gemma, sandwich=True, qk_norm=True)
_SCALE = Pair(_read_scale, _write_scale)
_FIELDS_1: Table = (*_COMMON, Rope(), _activation("hidden_act", "gelu"))
_FIELDS_2: Table = (
    *(*_COMMON, Rope(), _activation("hidden_activation"), _windows(2), _SCALE),
    Pair(_read_softcaps, _write_softcaps),
)
_FIELDS_3: Table = (
    *(*_COMMON, Pair(_read_ropes, write_ropes), _activation("hidden_activation"), _windows(None), _SCALE),
    Pair(_read_last_softcap, _write_softcaps),
)
_AROUND = functools.partial(
    tensors,
    before=("input_layernorm", "pre_feedforward_layernorm"),
    after=("post_attention_layernorm", "post_feedforward_layernorm"),
)
FAMILIES = (
    Family("gemma", "GemmaForCausalLM", tying(_one_rope), _FIELDS_1, PRE_NORM, prefix="model."),
    Family("gemma2", "Gemma2ForCausalLM", tying(_GEMMA2), _FIELDS_2, _AROUND, prefix="model."),
    Family("gemma3_text", "Gemma3ForCausalLM", tying(_GEMMA3), _FIELDS_3, _AROUND, prefix="model."),
)

"""Checkpoints of Bamba: the tensors of Mamba-2 and of LLaMA's attention, by layer."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from llm_jax.core.checks import check
from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Arguments, Field, Only, Pair, Table
from llm_jax.interop.hf_mamba2 import CHUNK, chunk_of, mixer_tensors, read_limits, write_limits
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.rope_options import longest, read_partial_rope, write_partial_rope, written_length
from llm_jax.interop.settings import Settings
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.recurrent.mamba2 import Mamba2Config
from llm_jax.layers.recurrent.matrix_recurrence import ChunkwiseForm
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.bamba import bamba
from llm_jax.models.families.mamba2 import CONVOLUTION


def _first(config: TransformerConfig, kind: type[parts.Kind]) -> parts.Kind:
    """The first mixer of this type. ValueError if no layer has one, because its sizes are unknown then."""
    found = [layer.block.mixer for layer in parts.layers(config) if isinstance(layer.block.mixer, kind)]
    check(bool(found), f"no layer has a mixer of type {kind.__name__}: this family requires one")
    return found[0]


def _of(kind: type[parts.Kind], name: str) -> Callable[[TransformerConfig], Any]:
    return lambda config: getattr(_first(config, kind), name)


def _read_rope(settings: Settings, found: Arguments) -> Arguments:
    length, size = settings.given("max_position_embeddings", default=262_144), found["width"] // found["heads"]
    # transformers takes half of each head whatever the top of the file says; `rope_parameters` may say otherwise.
    rope = read_partial_rope(settings.with_option("partial_rotary_factor", 0.5), size, length)
    return {"rope": rope, "max_length": longest(rope, length)}


def _write_rope(config: TransformerConfig) -> dict[str, Any]:
    mixer = _first(config, AttentionConfig)
    rope = parts.rope_of(mixer)
    written = write_partial_rope(rope, mixer.head_dim)
    return written | {"max_position_embeddings": written_length(rope, config.max_length)}


def _attention_layers(config: TransformerConfig) -> list[int]:
    return [layer.number for layer in parts.layers(config) if isinstance(layer.block.mixer, AttentionConfig)]


def _read_features(settings: Settings, found: Arguments) -> Arguments:
    width, heads, expand = found["width"], found["recurrent_heads"], settings.given("mamba_expand", default=2)
    features, size = int(expand * width), settings.given("mamba_d_head", default="auto")
    size = features // heads if size == "auto" else size
    check(
        features == heads * size,
        f"config.json has mamba_expand {expand} of hidden_size {width} and mamba_n_heads {heads} of mamba_d_head "
        f"{size}: transformers takes them only where they are as many features",
    )
    return {"head_dim": size}


def _write_features(config: TransformerConfig) -> dict[str, Any]:
    mixer = _first(config, Mamba2Config)
    expand, rest = divmod(mixer.features, config.width)
    check(
        rest == 0,
        f"the mixer has {mixer.features} features: a multiple of the width {config.width} is required",
    )
    return {"mamba_expand": expand, "mamba_d_head": mixer.head_dim}


def _read_convolution(settings: Settings, found: Arguments) -> Arguments:
    taps, bias = settings.given("mamba_d_conv", default=4), settings.given("mamba_conv_bias", default=True)
    return {"convolution": dataclasses.replace(CONVOLUTION, taps=taps, bias=bias)}


def _write_convolution(config: TransformerConfig) -> dict[str, Any]:
    convolution = _first(config, Mamba2Config).convolution
    return {"mamba_d_conv": convolution.taps, "mamba_conv_bias": convolution.bias}


# `z_loss_coefficient` is a part of the loss, which the objective of a run states.
_FIELDS: Table = (
    Only("hidden_act", "silu"),
    Field("num_hidden_layers", "layers"),
    Field("num_attention_heads", "heads", held=_of(AttentionConfig, "heads")),
    Field("hidden_size", "width"),
    Only("head_dim", lambda found: found["width"] // found["heads"]),
    Field("num_key_value_heads", "kv_heads", 8, _of(AttentionConfig, "kv_heads"), null=True),
    Field("intermediate_size", "hidden"),
    Field("vocab_size", "vocab_size"),
    Field("attn_layer_indices", "attention", (), _attention_layers),
    Pair(_read_rope, _write_rope),
    Field("rms_norm_eps", "epsilon", 1e-5),
    Field("attention_bias", "bias", False, _of(AttentionConfig, "bias")),
    Field("mlp_bias", "ffn_bias", False),
    Field("tie_word_embeddings", "tied", False),
    Field("mamba_n_heads", "recurrent_heads", 128, _of(Mamba2Config, "heads")),
    Pair(_read_features, _write_features),
    Field("mamba_n_groups", "groups", 1, _of(Mamba2Config, "groups")),
    Field("mamba_d_state", "state_size", 256, _of(Mamba2Config, "state_size")),
    Pair(_read_convolution, _write_convolution),
    Field("mamba_proj_bias", "recurrent_bias", False, _of(Mamba2Config, "bias")),
    Pair(read_limits, lambda config: write_limits(_first(config, Mamba2Config))),
    Pair(
        lambda settings, found: {"form": ChunkwiseForm(settings.given("mamba_chunk_size", default=CHUNK))},
        lambda config: {"mamba_chunk_size": chunk_of(_first(config, Mamba2Config))},
    ),
)


def _tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "model.embed_tokens.weight")
    for layer in parts.layers(config):
        name = f"model.layers.{layer.number}"
        yield from parts.layer_norm(layer, f"{name}.input_layernorm", "mixer_norm")
        if isinstance(layer.block.mixer, Mamba2Config):
            yield from mixer_tensors(layer, f"{name}.mamba")
        else:
            yield from parts.attention(layer, (f"{name}.self_attn.{part}_proj" for part in "qkvo"))
        yield from parts.layer_norm(layer, f"{name}.pre_ff_layernorm", "ffn_norm")
        yield from parts.llama_ffn(layer, f"{name}.feed_forward")
    yield from parts.norm("model.final_layernorm", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


FAMILIES = (Family("bamba", "BambaForCausalLM", bamba, _FIELDS, _tensors, prefix="model."),)

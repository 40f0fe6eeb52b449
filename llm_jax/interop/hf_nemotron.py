"""Checkpoints of OLMo and Granite, with LLaMA's tensors, and of Nemotron and Persimmon, with an ungated ffn."""

import functools
from collections.abc import Iterator
from typing import Any

from llm_jax.interop import expert_tensors, parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Arguments, Field, Nonlinearity, Only, Pair, Rope, Table, activating, balancing
from llm_jax.interop.hf_llama import BEFORE, BIAS, PRE_NORM, SILU, UNNORMED, UNROTATED, tensors
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings
from llm_jax.models.block import ScaledSerial
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.granite import granite, granite_moe
from llm_jax.models.families.nemotron import nemotron, persimmon
from llm_jax.models.families.olmo import olmo

_OLMO: Table = (
    *UNNORMED,
    Rope(default=2048),
    BIAS,
    Field("clip_qkv", "clip", None),
    Field("tie_word_embeddings", "tied", False),
)


def _residual(config: TransformerConfig) -> float:
    wiring = parts.first(config).wiring
    return wiring.factor if isinstance(wiring, ScaledSerial) else 1.0


def _read_logits(settings: Settings, found: Arguments) -> Arguments:
    return {"logits": 1 / settings.given("logits_scaling", default=1.0)}


def _write_logits(config: TransformerConfig) -> dict[str, Any]:
    return {"logits_scaling": 1 / parts.logits_scale(config)}


_GRANITE: Table = (
    *(entry for entry in UNROTATED if getattr(entry, "argument", None) != "tied"),
    Only("tie_word_embeddings", True, written=True),
    Rope(default=2048),
    BIAS,
    Field("embedding_multiplier", "embedding", 1.0, lambda config: config.embed.scale),
    Field("attention_multiplier", "scores", 1.0, lambda config: parts.attention_of(parts.first(config)).scores.scale),
    Field("residual_multiplier", "residual", 1.0, _residual),
    Pair(_read_logits, _write_logits),
)
_GRANITE_MOE: Table = (
    *_GRANITE,
    Field("num_local_experts", "experts", 8),
    Field("num_experts_per_tok", "top", 2),
    Field("router_aux_loss_coef", "load", 0.001),
)
_NEMOTRON: Table = (
    *(entry for entry in UNNORMED if entry != SILU),
    Nonlinearity("hidden_act", "relu2"),
    Rope(default=4096, share=0.5),
    Field("norm_eps", "epsilon", 1e-5),
    BIAS,
    Field("mlp_bias", "ffn_bias", False),
    Field("tie_word_embeddings", "tied", False),
)
_PERSIMMON: Table = (
    Field("num_hidden_layers", "layers"),
    Field("num_attention_heads", "heads"),
    Field("hidden_size", "width"),
    Field("intermediate_size", "hidden"),
    Field("vocab_size", "vocab_size"),
    Rope(default=16384, share=0.5),
    Nonlinearity("hidden_act", "relu2"),
    Field("layer_norm_eps", "epsilon", 1e-5),
    Field(
        *("qk_layernorm", "qk_norm", True),
        held=lambda config: parts.attention_of(parts.first(config)).qk_norm is not None,
    ),
    Field("tie_word_embeddings", "tied", False),
)


def _experts(layer: parts.LayerRef, name: str) -> Iterator[Tensor]:
    """Two tensors hold all experts of a layer: gate and up concatenated, and down."""
    name = f"{name}.block_sparse_moe"
    yield from expert_tensors.router(layer, f"{name}.router.layer")
    halves = tuple(layer.leaf(f"ffn/experts/{ours}/kernel", "x d (s f)") for ours in ("gate", "up"))
    yield Tensor(f"{name}.input_linear.weight", "x (s f) d", halves, layer.sizes)
    down = (layer.leaf("ffn/experts/down/kernel", "x f d"),)
    yield Tensor(f"{name}.output_linear.weight", "x d f", down, layer.sizes)


def _plain_ffn(layer: parts.LayerRef, name: str) -> Iterator[Tensor]:
    yield from parts.ffn(layer, {"up": f"{name}.up_proj"}, f"{name}.down_proj")


def _persimmon_tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "model.embed_tokens.weight")
    for layer in parts.layers(config):
        name = f"model.layers.{layer.number}"
        yield from parts.layer_norm(layer, f"{name}.input_layernorm", "mixer_norm")
        yield from parts.fused_attention(layer, f"{name}.self_attn.query_key_value", "(n s h) d", "d (n s) h")
        if parts.attention_of(layer.block).qk_norm:
            yield from parts.query_key_norms(layer, f"{name}.self_attn.q_layernorm", f"{name}.self_attn.k_layernorm")
        yield from parts.attention_out(layer, f"{name}.self_attn.dense")
        yield from parts.layer_norm(layer, f"{name}.post_attention_layernorm", "ffn_norm")
        yield from parts.ffn(layer, {"up": f"{name}.mlp.dense_h_to_4h"}, f"{name}.mlp.dense_4h_to_h")
    yield from parts.norm("model.final_layernorm", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


_NEMOTRON_TENSORS = functools.partial(tensors, before=BEFORE, ffn=_plain_ffn)
FAMILIES = (
    Family("olmo", "OlmoForCausalLM", olmo, _OLMO, PRE_NORM, prefix="model."),
    Family(
        "granite",
        "GraniteForCausalLM",
        granite,
        (*_GRANITE, Field("mlp_bias", "ffn_bias", False)),
        PRE_NORM,
        prefix="model.",
    ),
    Family(
        "granitemoe",
        "GraniteMoeForCausalLM",
        balancing(activating(granite_moe)),
        _GRANITE_MOE,
        functools.partial(PRE_NORM, experts=_experts),
        prefix="model.",
    ),
    Family("nemotron", "NemotronForCausalLM", nemotron, _NEMOTRON, _NEMOTRON_TENSORS, prefix="model."),
    Family("persimmon", "PersimmonForCausalLM", persimmon, _PERSIMMON, _persimmon_tensors, prefix="model."),
)

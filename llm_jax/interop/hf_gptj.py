"""Checkpoints of GPT-J and CodeGen: RoPE rotates neighbouring features together."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from llm_jax.core.checks import check_divides
from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Arguments, Field, Nonlinearity, Pair, Table, tying
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.gptj import gptj

_FIELDS: Table = (
    Field("n_layer", "layers"),
    Field("n_head", "heads"),
    Field("n_embd", "width"),
    Pair(
        lambda settings, found: {
            "rotated": settings.stated("rotary_dim", default=64) or found["width"] // found["heads"]
        },
        lambda config: {"rotary_dim": parts.rotated(parts.attention_of(parts.first(config)))},
    ),
    Field("vocab_size", "vocab_size"),
    Field("n_positions", "max_length", 2048),
    Field("n_inner", "hidden", None),
    Nonlinearity("activation_function", "gelu_new"),
    Field("layer_norm_epsilon", "epsilon", 1e-5),
    Field("tie_word_embeddings", "tied", False),
)


def _attention(layer: parts.LayerRef, name: str) -> Iterator[Tensor]:
    projections = (f"{name}.{part}_proj" for part in ("q", "k", "v", "out"))
    yield from parts.attention(layer, projections, neighbours=parts.rotated(parts.attention_of(layer.block)))


def _codegen_attention(layer: parts.LayerRef, name: str) -> Iterator[Tensor]:
    """Queries, values and keys in one matrix: four groups (m) of heads (u), one per core of the original training."""
    mixer = parts.attention_of(layer.block)
    layer = layer.with_sizes(m=_CORES, u=mixer.heads // _CORES)
    turned, order = parts.rotated(mixer), ("query", "value", "key")
    layouts = "(m s u h) d", "d (m s u) h"
    yield from parts.fused_attention(layer, f"{name}.qkv_proj", *layouts, order=order, neighbours=turned)
    yield from parts.attention_out(layer, f"{name}.out_proj")


_CORES = 4


def _check_cores(settings: Settings, found: Arguments) -> Arguments:
    check_divides(_CORES, found["heads"], "the number of parts of qkv_proj", "n_head")
    return {}


def _check_writes(config: TransformerConfig) -> dict[str, Any]:
    check_divides(_CORES, parts.attention_of(parts.first(config)).heads, "the number of parts of qkv_proj", "n_head")
    return {}


Attention = Callable[[parts.LayerRef, str], Iterator[Tensor]]


def _tensors(config: TransformerConfig, attention: Attention) -> Iterator[Tensor]:
    yield from parts.embedding(config, "transformer.wte.weight")
    for layer in parts.layers(config):
        name = f"transformer.h.{layer.number}"
        yield from parts.layer_norm(layer, f"{name}.ln_1", "mixer_norm")
        yield from attention(layer, f"{name}.attn")
        yield from parts.ffn(layer, {"up": f"{name}.mlp.fc_in"}, f"{name}.mlp.fc_out")
    yield from parts.norm("transformer.ln_f", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


def _family(kind: str, architecture: str, fields: Table, attention: Attention) -> Family:
    return Family(
        kind,
        architecture,
        tying(gptj),
        fields,
        functools.partial(_tensors, attention=attention),
        prefix="transformer.",
        copies={"lm_head.weight": "transformer.wte.weight"},
        unread=(r"\.attn\.(masked_)?bias$", r"\.attn\.embed_positions$", r"\.attn\.causal_mask$"),
    )


FAMILIES = (
    _family("gptj", "GPTJForCausalLM", _FIELDS, _attention),
    _family("codegen", "CodeGenForCausalLM", (*_FIELDS, Pair(_check_cores, _check_writes)), _codegen_attention),
)

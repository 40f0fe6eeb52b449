"""Checkpoints of Falcon, in the three layouts of queries, keys and values that its config.json distinguishes.

transformers rounds the slopes of ALiBi and their products with distances to bfloat16; this package keeps float32. The
two are equal if the slopes are powers of two and sequences have at most 256 tokens.
"""

from collections.abc import Iterator
from typing import Any

from llm_jax.core.checks import check
from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Arguments, Field, Nonlinearity, Pair, Rope, Table
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings
from llm_jax.models.block import Parallel, Serial
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.falcon import falcon


def _read_heads(settings: Settings, found: Arguments) -> Arguments:
    """Key/value heads and the wiring, for the older or the newer layout."""
    heads, grouped = found["heads"], settings.given("new_decoder_architecture", default=False)
    one = settings.given("multi_query", default=True)
    kv_heads = settings.given("num_kv_heads", default=heads) if grouped else 1 if one else heads
    if not grouped and not settings.given("parallel_attn", default=True):
        return {"kv_heads": kv_heads, "wiring": Serial()}
    norms = settings.given("num_ln_in_parallel_attn", default=2 if grouped else 1)
    return {"kv_heads": kv_heads, "wiring": Parallel(shared_norm=norms == 1)}


def _write_heads(config: TransformerConfig) -> dict[str, Any]:
    block = parts.first(config)
    mixer = parts.attention_of(block)
    return {
        "num_kv_heads": mixer.kv_heads,
        "new_decoder_architecture": _grouped(config),
        "multi_query": mixer.kv_heads == 1,
        "parallel_attn": isinstance(block.wiring, Parallel),
        "num_ln_in_parallel_attn": block.wiring.norms(2) if _grouped(config) else None,
    }


_ROPE = Rope(default=2048)


def _read_positions(settings: Settings, found: Arguments) -> Arguments:
    if not settings.given("alibi", default=False):
        return _ROPE.read(settings, found)
    return {"rope": None, "max_length": settings.given("max_position_embeddings", default=2048)}


def _write_positions(config: TransformerConfig) -> dict[str, Any]:
    if parts.attention_of(parts.first(config)).position is None:
        return {"alibi": True, "max_position_embeddings": config.max_length}
    return _ROPE.write(config) | {"alibi": False}


_FIELDS: Table = (
    Field("num_hidden_layers", "layers"),
    Field("num_attention_heads", "heads"),
    Field("hidden_size", "width"),
    Pair(_read_heads, _write_heads),
    Pair(_read_positions, _write_positions),
    Field("vocab_size", "vocab_size"),
    Field("ffn_hidden_size", "hidden", lambda found: 4 * found["width"]),
    Field("bias", "bias", False),
    Nonlinearity("activation"),
    Field("layer_norm_epsilon", "epsilon", 1e-5),
    Field("tie_word_embeddings", "tied", True),
)


def _grouped(config: TransformerConfig) -> bool:
    """Whether the model requires the newer layout: two parallel norms, or grouped-query attention."""
    block = parts.first(config)
    mixer = parts.attention_of(block)
    return block.wiring == Parallel(shared_norm=False) or 1 < mixer.kv_heads < mixer.heads


def _tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "transformer.word_embeddings.weight")
    for layer in parts.layers(config):
        name, mixer = f"transformer.h.{layer.number}", parts.attention_of(layer.block)
        yield from _norms(layer, name)
        fused = f"{name}.self_attention.query_key_value"
        if _grouped(config):
            shares = (mixer.heads // mixer.kv_heads, 1, 1)
            yield from parts.fused_attention(layer, fused, "(k s h) d", "d (k s) h", shares)
        elif mixer.kv_heads == 1:
            yield from parts.fused_attention(layer, fused, "(s h) d", "d s h", (mixer.heads, 1, 1))
        else:
            yield from parts.fused_attention(layer, fused, "(n s h) d", "d (n s) h")
        yield from parts.attention_out(layer, f"{name}.self_attention.dense")
        yield from parts.ffn(layer, {"up": f"{name}.mlp.dense_h_to_4h"}, f"{name}.mlp.dense_4h_to_h")
    yield from parts.norm("transformer.ln_f", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


def _norms(layer: parts.LayerRef, name: str) -> Iterator[Tensor]:
    match layer.block.wiring:
        case Parallel(shared_norm=True):
            names = {"input_layernorm": "mixer_norm"}
        case Parallel():
            names = {"ln_attn": "mixer_norm", "ln_mlp": "ffn_norm"}
        case wiring:
            check(wiring == Serial(), f"wiring is {wiring}: Falcon requires Parallel or Serial")
            names = {"input_layernorm": "mixer_norm", "post_attention_layernorm": "ffn_norm"}
    for theirs, ours in names.items():
        yield from parts.layer_norm(layer, f"{name}.{theirs}", ours)


FAMILIES = (
    Family(
        "falcon",
        "FalconForCausalLM",
        falcon,
        _FIELDS,
        _tensors,
        prefix="transformer.",
        copies={"lm_head.weight": "transformer.word_embeddings.weight"},
        unread=(r"rotary_emb\.inv_freq$",),
        counts_tokens=lambda config: parts.attention_of(parts.first(config)).position is None,
    ),
)

"""Checkpoints of DBRX: one tensor concatenates the matrices of all experts of a layer.

The published file has `rope_theta` in `attn_config`, which transformers 5 ignores. This module reads and writes it
there and at the top level, which takes precedence, as in transformers.
"""

from collections.abc import Iterator
from typing import Any

from llm_jax.interop import expert_tensors, parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Arguments, Field, Nested, Only, Pair, Rope, Table, balancing
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.dbrx import dbrx


def _read_normalized(settings: Settings, found: Arguments) -> Arguments:
    # Null means no normalization. Only the power 1 is supported.
    normalized = settings.stated("moe_normalize_expert_weights", 1) is not None
    settings.only("moe_normalize_expert_weights", 1, default=1)
    return {"normalized": normalized}


def _write_normalized(config: TransformerConfig) -> dict[str, Any]:
    return {"moe_normalize_expert_weights": 1.0 if parts.router_of(parts.expert_layer(config)).normalized else None}


def _read_rope(settings: Settings, found: Arguments) -> Arguments:
    base = settings.nested("attn_config").given("rope_theta", default=10_000.0)
    return Rope("max_seq_len", base=base).read(settings, found)


def _write_base(config: TransformerConfig) -> dict[str, Any]:
    return {"rope_theta": parts.rope_of(parts.attention_of(parts.first(config))).base}


_SILU = {"name": "silu"}
_ATTENTION: Table = (Field("kv_n_heads", "kv_heads", 1), Field("clip_qkv", "clip", None), Pair(write=_write_base))
_FFN: Table = (
    Only("ffn_act_fn", _SILU, written=_SILU),
    Pair(_read_normalized, _write_normalized),
    Field("ffn_hidden_size", "hidden", 3584),
    Field("moe_num_experts", "experts", 4),
    Field("moe_top_k", "top", 1),
    Field("moe_loss_weight", "load", 0.01),
)
_FIELDS: Table = (
    Only("tie_word_embeddings", False, written=False),
    Field("n_layers", "layers"),
    Field("n_heads", "heads"),
    Field("d_model", "width"),
    Field("vocab_size", "vocab_size"),
    Pair(_read_rope, Rope("max_seq_len").write),
    Nested("attn_config", _ATTENTION),
    Nested("ffn_config", _FFN),
)


def _tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "transformer.wte.weight")
    for layer in parts.layers(config):
        name, mixer = f"transformer.blocks.{layer.number}", parts.attention_of(layer.block)
        norms = f"{name}.norm_attn_norm"
        yield from parts.layer_norm(layer, f"{norms}.norm_1", "mixer_norm")
        shares = (mixer.heads, mixer.kv_heads, mixer.kv_heads)
        yield from parts.fused_attention(layer, f"{norms}.attn.Wqkv", "(s h) d", "d s h", shares)
        yield from parts.attention_out(layer, f"{norms}.attn.out_proj")
        yield from parts.layer_norm(layer, f"{norms}.norm_2", "ffn_norm")
        yield from expert_tensors.router(layer, f"{name}.ffn.router.layer")
        for theirs, ours, layout in (("w1", "gate", "x d f"), ("v1", "up", "x d f"), ("w2", "down", "x f d")):
            leaf = layer.leaf(f"ffn/experts/{ours}/kernel", layout)
            yield Tensor(f"{name}.ffn.experts.mlp.{theirs}", "(x f) d", (leaf,), layer.sizes)
    yield from parts.norm("transformer.norm_f", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


FAMILIES = (Family("dbrx", "DbrxForCausalLM", balancing(dbrx), _FIELDS, _tensors, prefix="transformer."),)

"""Checkpoints of BLOOM and MPT."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from llm_jax.interop import changes, parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Arguments, Field, Nested, Only, Pair, Table, constant
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.bloom import bloom, mpt


def _check_exact(settings: Settings, found: Arguments) -> Arguments:
    if settings.given("pretraining_tp", default=1) > 1:
        # transformers then omits the biases of both output projections, which were used in training.
        settings.only("slow_but_exact", False, default=False)
    return {}


_BLOOM: Table = (
    Only("apply_residual_connection_post_layernorm", False),
    Pair(_check_exact),
    Field("n_layer", "layers", older=("num_hidden_layers",)),
    Field("n_head", "heads", older=("num_attention_heads",)),
    Pair(
        lambda settings, found: {"width": settings.need("n_embed", "hidden_size")},
        lambda config: {"hidden_size": config.width},
    ),
    Field("vocab_size", "vocab_size"),
    Field("seq_length", "max_length", 2048),
    Field("layer_norm_epsilon", "epsilon", 1e-5),
    Field("tie_word_embeddings", "tied", True),
)


def _bloom_tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "transformer.word_embeddings.weight")
    yield from parts.norm("transformer.word_embeddings_layernorm", config.embed.norm, "embed/norm", config.width)
    for layer in parts.layers(config):
        name = f"transformer.h.{layer.number}"
        yield from parts.layer_norm(layer, f"{name}.input_layernorm", "mixer_norm")
        yield from parts.fused_attention(layer, f"{name}.self_attention.query_key_value", "(n s h) d", "d (n s) h")
        yield from parts.attention_out(layer, f"{name}.self_attention.dense")
        yield from parts.layer_norm(layer, f"{name}.post_attention_layernorm", "ffn_norm")
        yield from parts.ffn(layer, {"up": f"{name}.mlp.dense_h_to_4h"}, f"{name}.mlp.dense_4h_to_h")
    yield from parts.norm("transformer.ln_f", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


def _mpt(*, clip: float | None, **given: Any) -> TransformerConfig:
    """transformers' class ignores `no_bias`, `alibi`, `alibi_bias_max`, `qk_ln`, `prefix_lm`, `expansion_ratio` and
    `logit_scale`: its model always has the shape of the published ones. So has this; other weights raise an error."""
    return changes.changed(mpt(**given), functools.partial(_clipped, clip=clip))


def _clipped(_: int, block: BlockConfig, clip: float | None) -> BlockConfig:
    return dataclasses.replace(block, mixer=dataclasses.replace(parts.attention_of(block), clip=clip))


_MPT: Table = (
    Field("n_layers", "layers"),
    Field("n_heads", "heads"),
    Field("d_model", "width"),
    Field("vocab_size", "vocab_size"),
    Field("max_seq_len", "max_length", 2048),
    Field("layer_norm_epsilon", "epsilon", 1e-5),
    Nested(
        "attn_config",
        (
            Only("attn_type", "multihead_attention"),
            constant(alibi=True),
            Field("softmax_scale", "scale", None, lambda config: parts.attention_of(parts.first(config)).scores.scale),
            Field("clip_qkv", "clip", None),
        ),
    ),
    constant(no_bias=True),
    Field("tie_word_embeddings", "tied", True),
)


def _mpt_tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "transformer.wte.weight")
    for layer in parts.layers(config):
        name = f"transformer.blocks.{layer.number}"
        yield from parts.layer_norm(layer, f"{name}.norm_1", "mixer_norm")
        yield from parts.fused_attention(layer, f"{name}.attn.Wqkv", "(s n h) d", "d (s n) h")
        yield from parts.attention_out(layer, f"{name}.attn.out_proj")
        yield from parts.layer_norm(layer, f"{name}.norm_2", "ffn_norm")
        yield from parts.ffn(layer, {"up": f"{name}.ffn.up_proj"}, f"{name}.ffn.down_proj")
    yield from parts.norm("transformer.norm_f", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


FAMILIES = (
    Family(
        "bloom",
        "BloomForCausalLM",
        bloom,
        _BLOOM,
        _bloom_tensors,
        prefix="transformer.",
        copies={"lm_head.weight": "transformer.word_embeddings.weight"},
        counts_tokens=lambda config: True,
    ),
    Family(
        "mpt",
        "MptForCausalLM",
        _mpt,
        _MPT,
        _mpt_tensors,
        prefix="transformer.",
        copies={"lm_head.weight": "transformer.wte.weight"},
    ),
)

"""Checkpoints of BLOOM and MPT."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.bloom import bloom, mpt
from llm_jax.models.heads import TiedHead


def _read_bloom(settings: Settings) -> TransformerConfig:
    settings.only("apply_residual_connection_post_layernorm", False, default=False)
    if settings.given("pretraining_tp", default=1) > 1:
        # transformers then leaves the biases of both output projections out, which training had.
        settings.only("slow_but_exact", False, default=False)
    return bloom(
        settings.need("n_layer", "num_hidden_layers"),
        settings.need("n_head", "num_attention_heads"),
        settings.need("n_embed", "hidden_size"),
        vocab_size=settings.need("vocab_size"),
        max_length=settings.given("seq_length", default=2048),
        epsilon=settings.given("layer_norm_epsilon", default=1e-5),
        tied=settings.given("tie_word_embeddings", default=True),
    )


def _write_bloom(config: TransformerConfig) -> dict[str, Any]:
    block = parts.first(config)
    return {
        "n_layer": config.depth,
        "n_head": parts.attention_of(block).heads,
        "hidden_size": config.width,
        "vocab_size": config.vocab_size,
        "seq_length": config.max_length,
        "layer_norm_epsilon": parts.norm_of(block).epsilon,
        "tie_word_embeddings": isinstance(config.head, TiedHead),
    }


def _bloom_tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "transformer.word_embeddings.weight")
    yield from parts.norm("transformer.word_embeddings_layernorm", config.embed.norm, "embed/norm", config.width)
    for place in parts.places(config):
        name = f"transformer.h.{place.number}"
        yield from parts.layer_norm(place, f"{name}.input_layernorm", "mixer_norm")
        yield from parts.fused_attention(place, f"{name}.self_attention.query_key_value", "(n s h) d", "d (n s) h")
        yield from parts.attention_out(place, f"{name}.self_attention.dense")
        yield from parts.layer_norm(place, f"{name}.post_attention_layernorm", "ffn_norm")
        yield from parts.ffn(place, {"up": f"{name}.mlp.dense_h_to_4h"}, f"{name}.mlp.dense_4h_to_h")
    yield from parts.norm("transformer.ln_f", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


def _read_mpt(settings: Settings) -> TransformerConfig:
    """transformers' class has the shape of the published models whatever `no_bias`, `alibi`, `alibi_bias_max`, `qk_ln`,
    `prefix_lm`, `expansion_ratio` and `logit_scale` are, and so has this. Weights of another shape do not fit."""
    attention = settings.nested("attn_config")
    attention.only("attn_type", "multihead_attention", default="multihead_attention")
    config = mpt(
        settings.need("n_layers"),
        settings.need("n_heads"),
        settings.need("d_model"),
        vocab_size=settings.need("vocab_size"),
        max_length=settings.given("max_seq_len", default=2048),
        epsilon=settings.given("layer_norm_epsilon", default=1e-5),
        scale=attention.given("softmax_scale"),
        tied=settings.given("tie_word_embeddings", default=True),
    )
    clip = attention.given("clip_qkv")
    return config if clip is None else parts.changed(config, functools.partial(_clipped, clip=clip))


def _clipped(_: int, block: BlockConfig, clip: float) -> BlockConfig:
    return dataclasses.replace(block, mixer=dataclasses.replace(parts.attention_of(block), clip=clip))


def _write_mpt(config: TransformerConfig) -> dict[str, Any]:
    block = parts.first(config)
    mixer = parts.attention_of(block)
    return {
        "n_layers": config.depth,
        "n_heads": mixer.heads,
        "d_model": config.width,
        "vocab_size": config.vocab_size,
        "max_seq_len": config.max_length,
        "layer_norm_epsilon": parts.norm_of(block).epsilon,
        "attn_config": {"alibi": True, "softmax_scale": mixer.scores.scale, "clip_qkv": mixer.clip},
        "no_bias": True,
        "tie_word_embeddings": isinstance(config.head, TiedHead),
    }


def _mpt_tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "transformer.wte.weight")
    for place in parts.places(config):
        name = f"transformer.blocks.{place.number}"
        yield from parts.layer_norm(place, f"{name}.norm_1", "mixer_norm")
        yield from parts.fused_attention(place, f"{name}.attn.Wqkv", "(s n h) d", "d (s n) h")
        yield from parts.attention_out(place, f"{name}.attn.out_proj")
        yield from parts.layer_norm(place, f"{name}.norm_2", "ffn_norm")
        yield from parts.ffn(place, {"up": f"{name}.ffn.up_proj"}, f"{name}.ffn.down_proj")
    yield from parts.norm("transformer.norm_f", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


FAMILIES = (
    Family(
        "bloom",
        "BloomForCausalLM",
        _read_bloom,
        _write_bloom,
        _bloom_tensors,
        prefix="transformer.",
        copies={"lm_head.weight": "transformer.word_embeddings.weight"},
        counts_tokens=lambda config: True,
    ),
    Family(
        "mpt",
        "MptForCausalLM",
        _read_mpt,
        _write_mpt,
        _mpt_tensors,
        prefix="transformer.",
        copies={"lm_head.weight": "transformer.wte.weight"},
    ),
)

"""GPT-2's checkpoints: weights are [input, output], queries, keys and values one matrix."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings, activation_name
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.gpt2 import gpt2
from llm_jax.models.heads import TiedHead


def _read(settings: Settings) -> TransformerConfig:
    settings.only("add_cross_attention", False, default=False)
    config = gpt2(
        settings.need("n_layer"),
        settings.need("n_head"),
        settings.need("n_embd"),
        vocab_size=settings.need("vocab_size"),
        max_length=settings.given("n_positions", "n_ctx", default=1024),
        hidden=settings.given("n_inner"),
        activation=settings.activation("activation_function", default="gelu_new"),
        epsilon=settings.given("layer_norm_epsilon", default=1e-5),
    )
    scaled = settings.given("scale_attn_weights", default=True)
    inverse = settings.given("scale_attn_by_inverse_layer_idx", default=False)
    if inverse or not scaled:
        config = parts.changed(config, functools.partial(_scaled, scaled=scaled, inverse=inverse))
    return parts.with_tied(config, settings.given("tie_word_embeddings", default=True))


def _scaled(layer: int, block: BlockConfig, scaled: bool, inverse: bool) -> BlockConfig:
    """The block with the factor of its scores: 1 / sqrt(head size) where they are `scaled`, over the number of the
    layer, from 1, with `inverse`."""
    mixer = parts.attention_of(block)
    scale = (mixer.head_dim**-0.5 if scaled else 1.0) / (layer + 1 if inverse else 1)
    scores = dataclasses.replace(mixer.scores, scale=scale)
    return dataclasses.replace(block, mixer=dataclasses.replace(mixer, scores=scores))


def _write(config: TransformerConfig) -> dict[str, Any]:
    block = parts.first(config)
    mixer = parts.attention_of(block)
    ffn = parts.dense_of(block)
    scales = [parts.attention_of(place.block).scores.scale for place in parts.places(config)]
    return {
        "scale_attn_weights": scales[0] != 1.0,
        "scale_attn_by_inverse_layer_idx": len(set(scales)) > 1 or scales[0] == mixer.head_dim**-0.5,
        "tie_word_embeddings": isinstance(config.head, TiedHead),
        "n_layer": config.depth,
        "n_head": mixer.heads,
        "n_embd": config.width,
        "vocab_size": config.vocab_size,
        "n_positions": config.max_length,
        "n_inner": ffn.hidden,
        "activation_function": activation_name(ffn.activation),
        "layer_norm_epsilon": parts.norm_of(block).epsilon,
    }


def _tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "transformer.wte.weight")
    yield from parts.learned_positions(config, "transformer.wpe.weight")
    for place in parts.places(config):
        name = f"transformer.h.{place.number}"
        yield from parts.layer_norm(place, f"{name}.ln_1", "mixer_norm")
        yield from parts.fused_attention(place, f"{name}.attn.c_attn", "d (s n h)", "d (s n) h")
        yield from parts.attention_out(place, f"{name}.attn.c_proj", "(n h) d")
        yield from parts.layer_norm(place, f"{name}.ln_2", "ffn_norm")
        yield from parts.ffn(place, {"up": f"{name}.mlp.c_fc"}, f"{name}.mlp.c_proj", transposed=True)
    yield from parts.norm("transformer.ln_f", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


FAMILIES = (
    Family(
        "gpt2",
        "GPT2LMHeadModel",
        _read,
        _write,
        _tensors,
        prefix="transformer.",
        copies={"lm_head.weight": "transformer.wte.weight"},
        unread=(r"\.attn\.(masked_)?bias$",),
    ),
)

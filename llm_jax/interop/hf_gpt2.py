"""Checkpoints of GPT-2: weights are [input, output]; queries, keys and values are one matrix."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from llm_jax.interop import changes, parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Field, Nonlinearity, Only, Table, tying
from llm_jax.interop.mapping import Tensor
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.gpt2 import gpt2


def _gpt2(*, scaled: bool, inverse: bool, **given: Any) -> TransformerConfig:
    config = gpt2(**given)
    return changes.changed(config, functools.partial(_scaled, scaled=scaled, inverse=inverse))


def _scaled(layer: int, block: BlockConfig, scaled: bool, inverse: bool) -> BlockConfig:
    """The block with its factor of the attention scores: 1 / sqrt(head size) if `scaled`, else 1; divided by the number
    of the layer, from 1, if `inverse`."""
    if scaled and not inverse:
        return block
    mixer = parts.attention_of(block)
    scale = (mixer.head_dim**-0.5 if scaled else 1.0) / (layer + 1 if inverse else 1)
    scores = dataclasses.replace(mixer.scores, scale=scale)
    return dataclasses.replace(block, mixer=dataclasses.replace(mixer, scores=scores))


def _scales(config: TransformerConfig) -> list[float | None]:
    return [parts.attention_of(layer.block).scores.scale for layer in parts.layers(config)]


def _inverse(config: TransformerConfig) -> bool:
    scales = _scales(config)
    return len(set(scales)) > 1 or scales[0] == parts.attention_of(parts.first(config)).head_dim ** -0.5


_FIELDS: Table = (
    Only("add_cross_attention", False),
    Field("n_layer", "layers"),
    Field("n_head", "heads"),
    Field("n_embd", "width"),
    Field("vocab_size", "vocab_size"),
    Field("n_positions", "max_length", 1024, older=("n_ctx",)),
    Field("n_inner", "hidden", None),
    Nonlinearity("activation_function", "gelu_new"),
    Field("layer_norm_epsilon", "epsilon", 1e-5),
    Field("scale_attn_weights", "scaled", True, lambda config: _scales(config)[0] != 1.0),
    Field("scale_attn_by_inverse_layer_idx", "inverse", False, _inverse),
    Field("tie_word_embeddings", "tied", True),
)


def _tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "transformer.wte.weight")
    yield from parts.learned_positions(config, "transformer.wpe.weight")
    for layer in parts.layers(config):
        name = f"transformer.h.{layer.number}"
        yield from parts.layer_norm(layer, f"{name}.ln_1", "mixer_norm")
        yield from parts.fused_attention(layer, f"{name}.attn.c_attn", "d (s n h)", "d (s n) h")
        yield from parts.attention_out(layer, f"{name}.attn.c_proj", "(n h) d")
        yield from parts.layer_norm(layer, f"{name}.ln_2", "ffn_norm")
        yield from parts.ffn(layer, {"up": f"{name}.mlp.c_fc"}, f"{name}.mlp.c_proj", transposed=True)
    yield from parts.norm("transformer.ln_f", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


FAMILIES = (
    Family(
        "gpt2",
        "GPT2LMHeadModel",
        tying(_gpt2),
        _FIELDS,
        _tensors,
        prefix="transformer.",
        copies={"lm_head.weight": "transformer.wte.weight"},
        unread=(r"\.attn\.(masked_)?bias$",),
    ),
)

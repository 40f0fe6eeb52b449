"""Checkpoints of StableLM and Command R: LLaMA's tensor names with LayerNorm."""

import functools
from collections.abc import Iterator
from typing import Any

from llm_jax.core.checks import check
from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Arguments, Field, Only, Pair, Rope, Table, defaults
from llm_jax.interop.hf_llama import BEFORE, BIAS, UNNORMED, tensors
from llm_jax.interop.hf_llama_variants import alternating, read_windows, write_some_rope, write_windows
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.rope_options import longest, read_rope
from llm_jax.interop.settings import Settings
from llm_jax.models.block import Parallel
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.cohere import cohere, cohere2
from llm_jax.models.families.stablelm import stablelm

_STABLELM: Table = (
    Only("qk_layernorm", False),
    *(entry for entry in defaults(UNNORMED, kv_heads=32) if getattr(entry, "argument", None) != "head_dim"),
    Rope(default=4096, share=0.25),
    Field("layer_norm_eps", "epsilon", 1e-5),
    Field("use_qkv_bias", "bias", False),
    Field(
        *("use_parallel_residual", "parallel", False),
        held=lambda config: isinstance(parts.first(config).wiring, Parallel),
    ),
    Field("tie_word_embeddings", "tied", False),
)


def _stablelm_tensors(config: TransformerConfig) -> Iterator[Tensor]:
    parallel = isinstance(parts.first(config).wiring, Parallel)
    yield from tensors(config, before=BEFORE[:1] if parallel else BEFORE)


_COHERE: Table = (
    *UNNORMED,
    Field("layer_norm_eps", "epsilon", 1e-5),
    BIAS,
    Field("logit_scale", "scale", 0.0625, parts.logits_scale),
    Only("tie_word_embeddings", True, written=True),
)


_QK_NORM = Field(
    "use_qk_norm", "qk_norm", False, lambda config: parts.attention_of(parts.first(config)).qk_norm is not None
)


def _read_positions(settings: Settings, found: Arguments) -> Arguments:
    layers, length = found["layers"], settings.given("max_position_embeddings", default=8192)
    rope = read_rope(settings, found["head_dim"], length)
    period = settings.given("sliding_window_pattern", default=4)
    window = read_windows(settings, layers, alternating(layers, period))
    check(
        settings.stated("sliding_window", 4096) is not None,
        "config.json has sliding_window = null: layers with RoPE require a window; set it to a number",
    )
    return {"rope": rope, "window": window, "max_length": longest(rope, length)}


def _write_positions(config: TransformerConfig) -> dict[str, Any]:
    return write_some_rope(config) | write_windows(config)


_TENSORS = functools.partial(tensors, before=BEFORE[:1], neighbours=True)

FAMILIES = (
    Family("stablelm", "StableLmForCausalLM", stablelm, _STABLELM, _stablelm_tensors, prefix="model."),
    Family(
        "cohere",
        "CohereForCausalLM",
        cohere,
        (*_COHERE, Rope(default=8192, base=5e5), _QK_NORM),
        _TENSORS,
        prefix="model.",
    ),
    Family(
        "cohere2",
        "Cohere2ForCausalLM",
        cohere2,
        (*_COHERE, Pair(_read_positions, _write_positions)),
        _TENSORS,
        prefix="model.",
    ),
)

"""Checkpoints of gpt-oss: one tensor holds the experts of a layer, with gate and up features interleaved.

The published weights are quantized, which is not supported. Copies in bfloat16 are read.
"""

from collections.abc import Iterator
from typing import Any

from llm_jax.interop import expert_tensors, parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Arguments, Field, Only, Pair, Table, balancing, defaults
from llm_jax.interop.hf_llama import BEFORE, DECODER, SILU, tensors
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings, layer_types, layer_windows
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.gpt_oss import gpt_oss


def _read_windows(settings: Settings, found: Arguments) -> Arguments:
    layers, window = found["layers"], settings.given("sliding_window", default=128)
    kinds = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)]
    return {"windows": layer_windows(settings.given("layer_types", default=kinds), layers, window)}


def _write_windows(config: TransformerConfig) -> dict[str, Any]:
    windows = parts.windows(config)
    stated = next((window for window in windows if window is not None), None)
    return {"sliding_window": stated, "layer_types": layer_types(windows)}


_FIELDS: Table = (
    # Its experts use another activation, which is not an option.
    Only("hidden_act", "silu", written="silu"),
    Only("swiglu_alpha", 1.702),
    Only("swiglu_limit", 7.0),
    *(entry for entry in defaults(DECODER, kv_heads=8, head_dim=64, epsilon=1e-5) if entry != SILU),
    Field("attention_bias", "bias", True),
    Pair(_read_windows, _write_windows),
    Field("num_local_experts", "experts", 128, older=("num_experts",)),
    Field("num_experts_per_tok", "top", 4, older=("experts_per_token",)),
    Field("router_aux_loss_coef", "load", 0.001),
)


def _tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from tensors(config, before=BEFORE, experts=_experts)
    for layer in parts.layers(config):
        name = f"model.layers.{layer.number}.self_attn.sinks"
        yield Tensor(name, "n", (layer.leaf("mixer/sinks", "n"),), layer.sizes)


def _experts(layer: parts.LayerRef, name: str) -> Iterator[Tensor]:
    yield from expert_tensors.router(layer, f"{name}.mlp.router", bias=True)
    name = f"{name}.mlp.experts"
    for suffix, part, inner in (("", "kernel", "d "), ("_bias", "bias", "")):
        halves = tuple(layer.leaf(f"ffn/experts/{ours}/{part}", f"x {inner}(f s)") for ours in ("gate", "up"))
        yield Tensor(f"{name}.gate_up_proj{suffix}", f"x {inner}(f s)", halves, layer.sizes)
    for suffix, part, inner in (("", "kernel", "f "), ("_bias", "bias", "")):
        leaf = layer.leaf(f"ffn/experts/down/{part}", f"x {inner}d")
        yield Tensor(f"{name}.down_proj{suffix}", f"x {inner}d", (leaf,), layer.sizes)


FAMILIES = (Family("gpt_oss", "GptOssForCausalLM", balancing(gpt_oss), _FIELDS, _tensors, prefix="model."),)

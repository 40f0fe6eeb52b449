"""Checkpoints of gpt-oss: the experts of a layer lie in one tensor, gate and up feature by feature.

The published weights are quantized, and refused; copies in bfloat16 are read.
"""

from collections.abc import Iterator
from typing import Any

from llm_jax.interop import experts, parts
from llm_jax.interop.family import Family
from llm_jax.interop.hf_llama import BEFORE, read_decoder, tensors, write_decoder
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings, layer_types, layer_windows
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.gpt_oss import gpt_oss


def _read(settings: Settings) -> TransformerConfig:
    settings.only("hidden_act", "silu", default="silu")
    settings.only("swiglu_alpha", 1.702, default=1.702)
    settings.only("swiglu_limit", 7.0, default=7.0)
    layers = settings.need("num_hidden_layers")
    kinds = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)]
    window = settings.given("sliding_window", default=128)
    config = read_decoder(
        settings,
        gpt_oss,
        kv_heads=8,
        head_dim=64,
        epsilon=1e-5,
        bias=settings.given("attention_bias", default=True),
        windows=layer_windows(settings.given("layer_types", default=kinds), layers, window),
        experts=settings.given("num_local_experts", "num_experts", default=128),
        top=settings.given("num_experts_per_tok", "experts_per_token", default=4),
    )
    return experts.balanced(config, settings.given("router_aux_loss_coef", default=0.001))


def _write(config: TransformerConfig) -> dict[str, Any]:
    layer = parts.expert_layer(config)
    windows = [parts.window_of(parts.attention_of(place.block)) for place in parts.places(config)]
    return write_decoder(config) | {
        # Their function is another one, and no option.
        "hidden_act": "silu",
        "attention_bias": parts.attention_of(parts.first(config)).bias,
        "num_local_experts": layer.count,
        "num_experts_per_tok": parts.router_of(layer).top,
        "router_aux_loss_coef": experts.load_coefficient(config),
        "sliding_window": next((window for window in windows if window is not None), None),
        "layer_types": layer_types(windows),
    }


def _tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from tensors(config, before=BEFORE, experts=_experts)
    for place in parts.places(config):
        name = f"model.layers.{place.number}.self_attn.sinks"
        yield Tensor(name, "n", (place.leaf("mixer/sinks", "n"),), place.sizes)


def _experts(place: parts.Place, name: str) -> Iterator[Tensor]:
    yield from experts.router(place, f"{name}.mlp.router", bias=True)
    name = f"{name}.mlp.experts"
    for suffix, part, inner in (("", "kernel", "d "), ("_bias", "bias", "")):
        halves = tuple(place.leaf(f"ffn/experts/{ours}/{part}", f"x {inner}(f s)") for ours in ("gate", "up"))
        yield Tensor(f"{name}.gate_up_proj{suffix}", f"x {inner}(f s)", halves, place.sizes)
    for suffix, part, inner in (("", "kernel", "f "), ("_bias", "bias", "")):
        leaf = place.leaf(f"ffn/experts/down/{part}", f"x {inner}d")
        yield Tensor(f"{name}.down_proj{suffix}", f"x {inner}d", (leaf,), place.sizes)


FAMILIES = (Family("gpt_oss", "GptOssForCausalLM", _read, _write, _tensors, prefix="model."),)

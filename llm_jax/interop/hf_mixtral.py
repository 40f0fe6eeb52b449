"""Checkpoints of Mixtral, Qwen 2 and 3 with experts, and OLMoE: LLaMA's tensors, but for the experts."""

import functools
from collections.abc import Iterator
from typing import Any

from llm_jax.core.checks import given
from llm_jax.interop import experts, parts
from llm_jax.interop.family import Family
from llm_jax.interop.hf_llama import BEFORE, read_decoder, tensors, write_decoder, write_windows
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings, layer_windows
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.mixtral import mixtral
from llm_jax.models.families.olmoe import olmoe
from llm_jax.models.families.qwen_moe import qwen2_moe, qwen3_moe


def _read_mixtral(settings: Settings) -> TransformerConfig:
    config = read_decoder(
        settings,
        mixtral,
        kv_heads=8,
        epsilon=1e-5,
        window=settings.given("sliding_window"),
        experts=settings.given("num_local_experts", "num_experts", default=8),
        top=settings.given("num_experts_per_tok", default=2),
    )
    return experts.balanced(config, settings.given("router_aux_loss_coef", default=0.001))


def _write_mixtral(config: TransformerConfig) -> dict[str, Any]:
    layer = parts.expert_layer(config)
    return write_decoder(config) | {
        "num_local_experts": layer.count,
        "num_experts_per_tok": parts.router_of(layer).top,
        "router_aux_loss_coef": experts.load_coefficient(config),
        "sliding_window": parts.window_of(parts.attention_of(parts.first(config))),
    }


def _mixtral(place: parts.Place, name: str) -> Iterator[Tensor]:
    name = f"{name}.block_sparse_moe"
    yield from experts.router(place, f"{name}.gate")
    yield from experts.each(place, f"{name}.experts.", {"gate": "w1", "up": "w3"}, "w2")


def _read_choice(settings: Settings, count: int, top: int) -> dict[str, Any]:
    """The options that Qwen and OLMoE share, with the defaults of one of them."""
    return {
        "experts": settings.given("num_experts", "num_local_experts", default=count),
        "top": settings.given("num_experts_per_tok", default=top),
        "normalized": settings.given("norm_topk_prob", default=False),
    }


def _write_choice(config: TransformerConfig) -> dict[str, Any]:
    layer = parts.expert_layer(config)
    router = parts.router_of(layer)
    return {
        "num_experts": layer.count,
        "num_experts_per_tok": router.top,
        "norm_topk_prob": router.normalized,
        "router_aux_loss_coef": experts.load_coefficient(config),
    }


def _read_mixed(settings: Settings) -> tuple[int, ...]:
    """Layers that have experts, by the two options of Qwen."""
    step, dense = settings.given("decoder_sparse_step", default=1), settings.given("mlp_only_layers", default=[])
    layers = range(settings.need("num_hidden_layers"))
    return tuple(layer for layer in layers if layer not in dense and (layer + 1) % step == 0)


def _write_mixed(config: TransformerConfig) -> dict[str, Any]:
    mixed = parts.mixed_layers(config)
    dense = [layer for layer in range(config.depth) if layer not in mixed]
    hidden = parts.expert_layer(config).expert.hidden
    return {"decoder_sparse_step": 1, "mlp_only_layers": dense, "moe_intermediate_size": hidden}


def _read_qwen2(settings: Settings) -> TransformerConfig:
    settings.only("qkv_bias", True, default=True)
    config = read_decoder(
        settings,
        qwen2_moe,
        kv_heads=16,
        window=_windows(settings),
        expert_hidden=settings.given("moe_intermediate_size", default=1408),
        shared_hidden=settings.given("shared_expert_intermediate_size", default=5632),
        mixed=_read_mixed(settings),
        **_read_choice(settings, 60, 4),
    )
    return experts.balanced(config, settings.given("router_aux_loss_coef", default=0.001))


def _windows(settings: Settings) -> tuple[int | None, ...]:
    """Tokens that each layer sees: by `layer_types`, or every other one of the first `max_window_layers`."""
    layers, last = settings.need("num_hidden_layers"), settings.given("max_window_layers", default=28)
    if not settings.given("use_sliding_window", default=False):
        return (None,) * layers
    kinds = ["full_attention" if i % 2 or i >= last else "sliding_attention" for i in range(layers)]
    return layer_windows(settings.given("layer_types", default=kinds), layers, settings.given("sliding_window"))


def _write_qwen2(config: TransformerConfig) -> dict[str, Any]:
    shared = given(parts.expert_layer(config).shared, "the model has no expert for all tokens, and this family has")
    return (
        write_decoder(config)
        | write_windows(config)
        | _write_choice(config)
        | _write_mixed(config)
        | {"shared_expert_intermediate_size": shared.hidden, "qkv_bias": True}
    )


def _qwen(place: parts.Place, name: str) -> Iterator[Tensor]:
    """OLMoE's too."""
    name = f"{name}.mlp"
    yield from experts.router(place, f"{name}.gate")
    yield from experts.each(place, f"{name}.experts.", *experts.LLAMA)
    if parts.experts_of(place.block).shared is not None:
        yield from experts.shared(place, f"{name}.shared_expert", f"{name}.shared_expert_gate")


def _read_qwen3(settings: Settings) -> TransformerConfig:
    window = settings.given("sliding_window", default=4096)
    config = read_decoder(
        settings,
        qwen3_moe,
        kv_heads=4,
        bias=settings.given("attention_bias", default=False),
        window=window if settings.given("use_sliding_window", default=False) else None,
        expert_hidden=settings.given("moe_intermediate_size", default=768),
        mixed=_read_mixed(settings),
        **_read_choice(settings, 128, 8),
    )
    return experts.balanced(config, settings.given("router_aux_loss_coef", default=0.001))


def _write_qwen3(config: TransformerConfig) -> dict[str, Any]:
    mixer = parts.attention_of(parts.first(config))
    window = {"use_sliding_window": parts.window_of(mixer) is not None, "sliding_window": parts.window_of(mixer)}
    bias = {"attention_bias": mixer.bias}
    return write_decoder(config) | _write_choice(config) | _write_mixed(config) | window | bias


def _read_olmoe(settings: Settings) -> TransformerConfig:
    bias, clip = settings.given("attention_bias", default=False), settings.given("clip_qkv")
    config = read_decoder(settings, olmoe, epsilon=1e-5, bias=bias, clip=clip, **_read_choice(settings, 64, 8))
    return experts.balanced(config, settings.given("router_aux_loss_coef", default=0.01))


def _write_olmoe(config: TransformerConfig) -> dict[str, Any]:
    mixer = parts.attention_of(parts.first(config))
    return write_decoder(config) | _write_choice(config) | {"attention_bias": mixer.bias, "clip_qkv": mixer.clip}


def _family(kind: str, architecture: str, read: Any, write: Any, of_experts: Any) -> Family:
    maps = functools.partial(tensors, before=BEFORE, experts=of_experts)
    return Family(kind, architecture, read, write, maps, prefix="model.", unread=(r"rotary_emb\.inv_freq$",))


FAMILIES = (
    _family("mixtral", "MixtralForCausalLM", _read_mixtral, _write_mixtral, _mixtral),
    _family("qwen2_moe", "Qwen2MoeForCausalLM", _read_qwen2, _write_qwen2, _qwen),
    _family("qwen3_moe", "Qwen3MoeForCausalLM", _read_qwen3, _write_qwen3, _qwen),
    _family("olmoe", "OlmoeForCausalLM", _read_olmoe, _write_olmoe, _qwen),
)

"""Checkpoints of Mixtral, Qwen2-MoE, Qwen3-MoE and OLMoE: LLaMA's tensors, except those of the MoE layers."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from llm_jax.interop import expert_tensors, parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Arguments, Field, Only, Pair, Table, activating, balancing, defaults
from llm_jax.interop.hf_llama import BEFORE, BIAS, DECODER, tensors, write_windows
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings, layer_windows
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.mixtral import mixtral
from llm_jax.models.families.olmoe import olmoe
from llm_jax.models.families.qwen_moe import qwen2_moe, qwen3_moe


def _choice(count: int, top: int, load: float = 0.001) -> Table:
    """The MoE options that Qwen and OLMoE share, with the defaults of one of them."""
    return (
        Field("num_experts", "experts", count, older=("num_local_experts",)),
        Field("num_experts_per_tok", "top", top),
        Field("norm_topk_prob", "normalized", False),
        Field("router_aux_loss_coef", "load", load),
    )


_MIXTRAL: Table = (
    *defaults(DECODER, kv_heads=8, epsilon=1e-5),
    Field("sliding_window", "window", None),
    Field("num_local_experts", "experts", 8, older=("num_experts",)),
    Field("num_experts_per_tok", "top", 2),
    Field("router_aux_loss_coef", "load", 0.001),
)


def _mixtral(layer: parts.LayerRef, name: str) -> Iterator[Tensor]:
    name = f"{name}.block_sparse_moe"
    yield from expert_tensors.router(layer, f"{name}.gate")
    yield from expert_tensors.each(layer, f"{name}.experts.", {"gate": "w1", "up": "w3"}, "w2")


def _read_mixed(settings: Settings, found: Arguments) -> Arguments:
    """The MoE layers, from the two options of Qwen."""
    step, dense = settings.given("decoder_sparse_step", default=1), settings.given("mlp_only_layers", default=[])
    return {"mixed": tuple(i for i in range(found["layers"]) if i not in dense and (i + 1) % step == 0)}


def _write_mixed(config: TransformerConfig) -> dict[str, Any]:
    mixed = parts.mixed_layers(config)
    return {"decoder_sparse_step": 1, "mlp_only_layers": [i for i in range(config.depth) if i not in mixed]}


_MIXED = Pair(_read_mixed, _write_mixed)


def _read_windows(settings: Settings, found: Arguments) -> Arguments:
    """The window of each layer: from `layer_types`, or in every other one of the first `max_window_layers` layers."""
    layers, last = found["layers"], settings.given("max_window_layers", default=28)
    if not settings.given("use_sliding_window", default=False):
        return {"window": (None,) * layers}
    kinds = ["full_attention" if i % 2 or i >= last else "sliding_attention" for i in range(layers)]
    stated = settings.given("layer_types", default=kinds)
    return {"window": layer_windows(stated, layers, settings.given("sliding_window"))}


_QWEN2: Table = (
    Only("qkv_bias", True, written=True),
    *defaults(DECODER, kv_heads=16),
    Pair(_read_windows, write_windows),
    Field("moe_intermediate_size", "expert_hidden", 1408),
    Field("shared_expert_intermediate_size", "shared_hidden", 5632),
    _MIXED,
    *_choice(60, 4),
)


def _qwen(layer: parts.LayerRef, name: str) -> Iterator[Tensor]:
    """The MoE layers of Qwen and OLMoE."""
    name = f"{name}.mlp"
    yield from expert_tensors.router(layer, f"{name}.gate")
    yield from expert_tensors.each(layer, f"{name}.experts.", *expert_tensors.LLAMA)
    if parts.experts_of(layer.block).shared is not None:
        yield from expert_tensors.shared(layer, f"{name}.shared_expert", f"{name}.shared_expert_gate")


def _read_window(settings: Settings, found: Arguments) -> Arguments:
    window = settings.given("sliding_window", default=4096)
    return {"window": window if settings.given("use_sliding_window", default=False) else None}


def _write_window(config: TransformerConfig) -> dict[str, Any]:
    window = parts.window_of(parts.attention_of(parts.first(config)))
    return {"use_sliding_window": window is not None, "sliding_window": window}


_QWEN3: Table = (
    *defaults(DECODER, kv_heads=4),
    BIAS,
    Pair(_read_window, _write_window),
    Field("moe_intermediate_size", "expert_hidden", 768),
    _MIXED,
    *_choice(128, 8),
)
_OLMOE: Table = (*defaults(DECODER, epsilon=1e-5), BIAS, Field("clip_qkv", "clip", None), *_choice(64, 8, 0.01))


def _family(
    kind: str, architecture: str, build: Callable[..., TransformerConfig], fields: Table, of_experts: Any
) -> Family:
    maps, build = functools.partial(tensors, before=BEFORE, experts=of_experts), balancing(activating(build))
    return Family(kind, architecture, build, fields, maps, prefix="model.", unread=(r"rotary_emb\.inv_freq$",))


FAMILIES = (
    _family("mixtral", "MixtralForCausalLM", mixtral, _MIXTRAL, _mixtral),
    _family("qwen2_moe", "Qwen2MoeForCausalLM", qwen2_moe, _QWEN2, _qwen),
    _family("qwen3_moe", "Qwen3MoeForCausalLM", qwen3_moe, _QWEN3, _qwen),
    _family("olmoe", "OlmoeForCausalLM", olmoe, _OLMOE, _qwen),
)

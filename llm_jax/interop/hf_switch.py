"""Checkpoints of Switch Transformers: T5's tensors, except those of the MoE layers.

In transformers an expert has the capacity `expert_capacity` in every sequence, and padding uses capacity; here it does
not. Router noise is used only in training in both. transformers computes the load loss of each sequence, this package
that of the batch, as in the paper.
"""

import functools
from collections.abc import Iterator
from typing import Any

from llm_jax.interop import changes, expert_tensors, parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Arguments, Field, Nonlinearity, Only, Pair, Table
from llm_jax.interop.hf_t5 import COPIES, PAIR, UNREAD, tensors
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings
from llm_jax.layers.activations import Activation
from llm_jax.layers.ffn.dispatch.capacity import FixedCapacity, LimitedCapacity
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.models.config import EncoderDecoderConfig
from llm_jax.models.families.switch import switch


def _switch(*, activation: Activation, load: float, z: float, **given: Any) -> EncoderDecoderConfig:
    pair = switch(**given)
    stacks = (expert_tensors.balanced(changes.with_activation(stack, activation), load, z) for stack in pair.stacks)
    return EncoderDecoderConfig(*stacks)


def _read_mixed(settings: Settings, found: Arguments) -> Arguments:
    stacks = {"every": ("encoder", found["layers"]), "decoder_every": ("decoder", found["decoder_layers"])}
    return {
        argument: _every(settings.given(f"num_sparse_{side}_layers", default=3), layers)
        for argument, (side, layers) in stacks.items()
    }


def _every(mixed: int, layers: int) -> int:
    """The period of MoE layers, from their number in a file. With 0 MoE layers transformers makes one, and so does
    this."""
    return layers // mixed if mixed else layers


def _write_mixed(config: EncoderDecoderConfig) -> dict[str, Any]:
    stacks = {"encoder": config.encoder, "decoder": config.decoder}
    return {f"num_sparse_{name}_layers": len(parts.mixed_layers(side)) for name, side in stacks.items()}


def _layer(config: EncoderDecoderConfig) -> MoEConfig:
    return parts.expert_layer(config.decoder)


_FIELDS: Table = (
    # transformers' class ignores the other options of the ffn: `feed_forward_proj` and `is_gated_act`.
    Nonlinearity("dense_act_fn", "relu"),
    Only("router_dtype", "float32"),
    *PAIR,
    Pair(_read_mixed, _write_mixed),
    Field("num_experts", "experts", 8),
    Pair(
        lambda settings, found: {"dispatch": FixedCapacity(limit=settings.given("expert_capacity", default=64))},
        lambda config: {"expert_capacity": _capacity(_layer(config), config.decoder.max_length)},
    ),
    Field("router_bias", "bias", False, lambda config: _has_bias(_layer(config))),
    Field("router_aux_loss_coef", "load", 0.001),
    Field("router_z_loss_coef", "z", 0.001),
    Field("tie_word_embeddings", "tied", True),
)


def _capacity(layer: MoEConfig, length: int) -> int:
    """Capacity of an expert in a sequence of maximum length; without a limit it is that length."""
    dispatch = layer.dispatch
    return dispatch.expert_capacity(length, 1, layer.count) if isinstance(dispatch, LimitedCapacity) else length


def _has_bias(layer: MoEConfig) -> bool:
    return isinstance(layer.router, SoftmaxConfig) and layer.router.bias


def _ffn(layer: parts.LayerRef, name: str) -> Iterator[Tensor]:
    name = f"{name}.mlp"
    if not isinstance(layer.block.ffn, MoEConfig):
        yield from parts.ffn(layer, {"up": f"{name}.wi"}, f"{name}.wo")
        return
    yield from expert_tensors.router(layer, f"{name}.router.classifier", _has_bias(parts.experts_of(layer.block)))
    yield from expert_tensors.each(layer, f"{name}.experts.expert_", {"up": "wi"}, "wo")


FAMILIES = (
    Family(
        "switch_transformers",
        "SwitchTransformersForConditionalGeneration",
        _switch,
        _FIELDS,
        functools.partial(tensors, ffn=_ffn),
        copies=COPIES,
        unread=UNREAD,
        kind=EncoderDecoderConfig,
    ),
)

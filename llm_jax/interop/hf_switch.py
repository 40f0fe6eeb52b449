"""Checkpoints of Switch Transformers: T5's tensors, but for the experts.

transformers gives an expert the same number of places in every row, `expert_capacity`. Tokens of padding take places
there, and none here. Noise is in training only, as here. Its load loss is that of every row by itself, and here
of the batch, as in the paper.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from llm_jax.interop import experts, parts
from llm_jax.interop.family import Family
from llm_jax.interop.hf_t5 import COPIES, UNREAD, read_pair, tensors, write_pair
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings, activation_name
from llm_jax.layers.ffn.dispatch.capacity import FixedCapacity, Limited
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.models.config import EncoderDecoderConfig
from llm_jax.models.families.switch import switch


def _read(settings: Settings) -> EncoderDecoderConfig:
    # transformers' class reads no other option of its ffns: `feed_forward_proj` and `is_gated_act` gate nothing.
    activation = settings.activation("dense_act_fn", default="relu")
    settings.only("router_dtype", "float32", default="float32")
    layers = settings.need("num_layers")
    decoder_layers = settings.given("num_decoder_layers", default=layers)
    pair = read_pair(
        settings,
        switch,
        experts=settings.given("num_experts", default=8),
        every=_every(settings.given("num_sparse_encoder_layers", default=3), layers),
        decoder_every=_every(settings.given("num_sparse_decoder_layers", default=3), decoder_layers),
        bias=settings.given("router_bias", default=False),
        tied=settings.given("tie_word_embeddings", default=True),
        dispatch=FixedCapacity(limit=settings.given("expert_capacity", default=64)),
    )
    names = ("router_aux_loss_coef", "router_z_loss_coef")
    coefficients = [settings.given(name, default=0.001) for name in names]
    stacks = (parts.with_activation(stack, activation) for stack in pair.stacks)
    encoder, decoder = (experts.balanced(stack, *coefficients) for stack in stacks)
    return dataclasses.replace(pair, encoder=encoder, decoder=decoder)


def _every(mixed: int, layers: int) -> int:
    """Of so many layers one has experts, where a file says that so many have. Of none it makes one, as transformers
    does."""
    return layers // mixed if mixed else layers


def _write(config: EncoderDecoderConfig) -> dict[str, Any]:
    decoder, layer = config.decoder, parts.expert_layer(config.decoder)
    return write_pair(config) | {
        "num_sparse_encoder_layers": len(parts.mixed_layers(config.encoder)),
        "num_sparse_decoder_layers": len(parts.mixed_layers(decoder)),
        "num_experts": layer.count,
        "expert_capacity": _capacity(layer, decoder.max_length),
        "router_bias": _has_bias(layer),
        "router_aux_loss_coef": experts.load_coefficient(decoder),
        "router_z_loss_coef": experts.z_coefficient(decoder),
        "dense_act_fn": activation_name(layer.expert.activation),
    }


def _capacity(layer: MoEConfig, length: int) -> int:
    """Places of an expert in the longest row; without a limit there are some for all tokens."""
    dispatch = layer.dispatch
    return dispatch.places(length, 1, layer.count) if isinstance(dispatch, Limited) else length


def _has_bias(layer: MoEConfig) -> bool:
    return isinstance(layer.router, SoftmaxConfig) and layer.router.bias


def _ffn(place: parts.Place, name: str) -> Iterator[Tensor]:
    name = f"{name}.mlp"
    if not isinstance(place.block.ffn, MoEConfig):
        yield from parts.ffn(place, {"up": f"{name}.wi"}, f"{name}.wo")
        return
    yield from experts.router(place, f"{name}.router.classifier", _has_bias(parts.experts_of(place.block)))
    yield from experts.each(place, f"{name}.experts.expert_", {"up": "wi"}, "wo")


FAMILIES = (
    Family(
        "switch_transformers",
        "SwitchTransformersForConditionalGeneration",
        _read,
        _write,
        functools.partial(tensors, ffn=_ffn),
        copies=COPIES,
        unread=UNREAD,
        kind=EncoderDecoderConfig,
    ),
)

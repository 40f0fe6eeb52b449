"""Checkpoints of Switch Transformers: T5's tensors, but for the experts.

transformers gives an expert the same number of places in every row, `expert_capacity`: `Capacity` with groups of
`n_positions` tokens, which the published files state, is that for rows that are no longer. Tokens of padding take
places there, and none here. Noise is in training only, as here. Its load loss is that of every row by itself, and here
of the batch, as in the paper.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from llm_jax.interop import experts, parts
from llm_jax.interop.family import Family
from llm_jax.interop.hf_t5 import COPIES, UNREAD, tensors
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings
from llm_jax.layers.ffn.dispatch.capacity import Capacity
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.models.config import EncoderDecoderConfig
from llm_jax.models.families.switch import switch
from llm_jax.models.heads import TiedHead


def _read(settings: Settings) -> EncoderDecoderConfig:
    settings.only("dense_act_fn", "relu", default="relu")
    settings.only("feed_forward_proj", "relu", default="relu")
    settings.only("router_dtype", "float32", default="float32")
    layers, length = settings.given("num_layers", default=12), settings.given("n_positions", default=512)
    decoder_layers = settings.given("num_decoder_layers", default=layers)
    count = settings.given("num_experts", default=8)
    pair = switch(
        layers,
        settings.need("num_heads"),
        settings.need("d_model"),
        settings.need("d_ff"),
        settings.need("d_kv"),
        settings.need("vocab_size"),
        length,
        decoder_layers,
        count,
        _every(settings.given("num_sparse_encoder_layers", default=3), layers),
        _every(settings.given("num_sparse_decoder_layers", default=3), decoder_layers),
        settings.given("router_bias", default=False),
        settings.given("tie_word_embeddings", default=True),
        settings.given("relative_attention_num_buckets", default=32),
        settings.given("relative_attention_max_distance", default=128),
        settings.given("layer_norm_epsilon", default=1e-6),
        dispatch=Capacity(settings.given("expert_capacity", default=64) * count / length, group=length),
    )
    names = ("router_aux_loss_coef", "router_z_loss_coef")
    coefficients = [settings.given(name, default=0.001) for name in names]
    encoder, decoder = (experts.balanced(side, *coefficients) for side in pair.sides)
    return dataclasses.replace(pair, encoder=encoder, decoder=decoder)


def _every(mixed: int, layers: int) -> int:
    """Of so many layers one has experts, where a file says that so many have. Of none it makes one, as transformers
    does."""
    return layers // mixed if mixed else layers


def _write(config: EncoderDecoderConfig) -> dict[str, Any]:
    decoder = config.decoder
    block, mixture = parts.first(decoder), parts.mixture(decoder)
    bias = block.mixer.scores.bias
    return {
        "num_layers": config.encoder.depth,
        "num_decoder_layers": decoder.depth,
        "num_sparse_encoder_layers": len(parts.mixed_layers(config.encoder)),
        "num_sparse_decoder_layers": len(parts.mixed_layers(decoder)),
        "num_heads": block.mixer.heads,
        "d_model": decoder.width,
        "d_ff": mixture.expert.hidden,
        "d_kv": block.mixer.head_dim,
        "vocab_size": decoder.vocab_size,
        "n_positions": decoder.max_length,
        "num_experts": mixture.count,
        "expert_capacity": _capacity(mixture, decoder.max_length),
        "router_bias": mixture.router.bias,
        "router_aux_loss_coef": experts.load_coefficient(decoder),
        "router_z_loss_coef": experts.z_coefficient(decoder),
        "dense_act_fn": mixture.expert.activation,
        "tie_word_embeddings": isinstance(decoder.head, TiedHead),
        "relative_attention_num_buckets": bias.buckets,
        "relative_attention_max_distance": bias.max_distance,
        "layer_norm_epsilon": block.norm.epsilon,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }


def _capacity(mixture: MoEConfig, length: int) -> int:
    """Places of an expert in the longest row; without a limit there are some for all tokens."""
    dispatch = mixture.dispatch
    return dispatch.places(length, 1, mixture.count) if isinstance(dispatch, Capacity) else length


def _ffn(place: parts.Place, name: str) -> Iterator[Tensor]:
    name = f"{name}.mlp"
    if not isinstance(place.block.ffn, MoEConfig):
        yield from parts.ffn(place, {"up": f"{name}.wi"}, f"{name}.wo")
        return
    yield from experts.router(place, f"{name}.router.classifier", place.block.ffn.router.bias)
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
    ),
)

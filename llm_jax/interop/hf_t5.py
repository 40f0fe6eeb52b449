"""Checkpoints of T5 and T5 1.1."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

from llm_jax.core.checks import given
from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings, activation_name
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.models.config import EncoderDecoderConfig, TransformerConfig
from llm_jax.models.families.t5 import t5
from llm_jax.models.heads import TiedHead


def read_pair(
    settings: Settings, build: Callable[..., EncoderDecoderConfig] = t5, **of_family: Any
) -> EncoderDecoderConfig:
    """What all of them have in common; `build` is the family's function."""
    return build(
        settings.need("num_layers"),
        settings.need("num_heads"),
        settings.need("d_model"),
        hidden=settings.need("d_ff"),
        head_dim=settings.need("d_kv"),
        vocab_size=settings.need("vocab_size"),
        max_length=settings.given("n_positions", default=512),
        decoder_layers=settings.given("num_decoder_layers"),
        buckets=settings.given("relative_attention_num_buckets", default=32),
        max_distance=settings.given("relative_attention_max_distance", default=128),
        epsilon=settings.given("layer_norm_epsilon", default=1e-6),
        **of_family,
    )


def write_pair(config: EncoderDecoderConfig) -> dict[str, Any]:
    """What all of them have in common."""
    decoder, ffn = config.decoder, parts.plain_ffn(config.decoder)
    block = parts.first(decoder)
    mixer = parts.attention_of(block)
    bias, _ = given(decoder.relative_bias, "the model has no biases by relative place, and T5 has")
    return {
        "num_layers": config.encoder.depth,
        "num_decoder_layers": decoder.depth,
        "num_heads": mixer.heads,
        "d_model": decoder.width,
        "d_ff": ffn.hidden,
        "d_kv": mixer.head_dim,
        "vocab_size": decoder.vocab_size,
        "n_positions": decoder.max_length,
        "tie_word_embeddings": isinstance(decoder.head, TiedHead),
        "relative_attention_num_buckets": bias.buckets,
        "relative_attention_max_distance": bias.max_distance,
        "layer_norm_epsilon": parts.norm_of(block).epsilon,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }


def _read(settings: Settings) -> EncoderDecoderConfig:
    stated = settings.given("feed_forward_proj", default="relu")
    activation = settings.activation("feed_forward_proj", default=stated, prefix="gated-")
    tied = settings.given("tie_word_embeddings", default=True)
    scaled = settings.given("scale_decoder_outputs", default=tied)
    # Files of transformers 5 always say that weights are tied, which they are unless a matrix lies beside the table.
    stored = settings.stores("lm_head.weight")
    own = not scaled and (not tied if stored is None else stored)
    pair = read_pair(
        settings,
        # "gated-gelu" has always meant the tanh form.
        activation="gelu_tanh" if stated == "gated-gelu" else activation,
        gated=stated.startswith("gated-"),
        tied=not own,
    )
    if own or scaled:
        return pair
    return dataclasses.replace(pair, decoder=dataclasses.replace(pair.decoder, head=TiedHead()))


def _write(config: EncoderDecoderConfig) -> dict[str, Any]:
    ffn = parts.dense_of(parts.first(config.decoder))
    gated = isinstance(ffn, GLUConfig)
    name = {"gelu_tanh": "gelu"}.get(ffn.activation) if gated else None
    return write_pair(config) | {
        "feed_forward_proj": "gated-" * gated + (name or activation_name(ffn.activation)),
        "scale_decoder_outputs": isinstance(config.decoder.head, TiedHead) and config.decoder.head.scale != 1,
    }


FFN = Callable[[parts.Place, str], Iterator[Tensor]]
"""(layer, start of the names of its half) -> tensors of its ffn."""


def tensors(config: EncoderDecoderConfig, ffn: FFN) -> Iterator[Tensor]:
    """The tensors under T5's names."""
    yield from parts.under("decoder", parts.embedding(config.decoder, "shared.weight"))
    for side in ("encoder", "decoder"):
        yield from parts.under(side, _side(getattr(config, side), side, ffn))
    yield from parts.under("decoder", parts.head(config.decoder, "lm_head"))


def _side(config: TransformerConfig, side: str, ffn: FFN) -> Iterator[Tensor]:
    yield from parts.relative_bias(config, f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    for place in parts.places(config):
        name = f"{side}.block.{place.number}.layer"
        yield from parts.layer_norm(place, f"{name}.0.layer_norm", "mixer_norm")
        yield from parts.attention(place, (f"{name}.0.SelfAttention.{part}" for part in "qkvo"))
        if place.block.cross:
            yield from parts.layer_norm(place, f"{name}.1.layer_norm", "cross_norm")
            yield from parts.attention(place, (f"{name}.1.EncDecAttention.{part}" for part in "qkvo"), branch="cross")
        last = 2 if place.block.cross else 1
        yield from parts.layer_norm(place, f"{name}.{last}.layer_norm", "ffn_norm")
        yield from ffn(place, f"{name}.{last}")
    yield from parts.norm(f"{side}.final_layer_norm", config.final_norm, "final_norm", config.width)


def _ffn(place: parts.Place, name: str) -> Iterator[Tensor]:
    name, gated = f"{name}.DenseReluDense", isinstance(place.block.ffn, GLUConfig)
    into = {"gate": f"{name}.wi_0", "up": f"{name}.wi_1"} if gated else {"up": f"{name}.wi"}
    yield from parts.ffn(place, into, f"{name}.wo")


COPIES: dict[str, str] = dict.fromkeys(
    ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"), "shared.weight"
)
UNREAD = (r"EncDecAttention\.relative_attention_bias\.weight$",)

FAMILIES = (
    Family(
        "t5",
        "T5ForConditionalGeneration",
        _read,
        _write,
        functools.partial(tensors, ffn=_ffn),
        copies=COPIES,
        unread=UNREAD,
        kind=EncoderDecoderConfig,
    ),
)

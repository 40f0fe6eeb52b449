"""Checkpoints of T5, T5 1.1, mT5 and UMT5."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Arguments, Field, Pair, Table, constant
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings, activation_name
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.positions.relative_bias import LayerRelativeBiasConfig, RelativeBiasConfig
from llm_jax.models.config import EncoderDecoderConfig, TransformerConfig
from llm_jax.models.families.t5 import t5
from llm_jax.models.heads import ScaledHead, TiedHead


def _bias(config: EncoderDecoderConfig) -> RelativeBiasConfig:
    bias = parts.attention_of(parts.first(config.decoder)).scores.bias
    if not isinstance(bias, RelativeBiasConfig):
        raise ValueError(f"scores.bias is {bias}: T5 requires a RelativeBiasConfig")
    return bias


PAIR: Table = (
    Field("num_layers", "layers"),
    Field("num_decoder_layers", "decoder_layers", lambda found: found["layers"]),
    Field("num_heads", "heads"),
    Field("d_model", "width"),
    Field("d_ff", "hidden"),
    Field("d_kv", "head_dim"),
    Field("vocab_size", "vocab_size"),
    Field("n_positions", "max_length", 512),
    Field("relative_attention_num_buckets", "buckets", 32, lambda config: _bias(config).buckets),
    Field("relative_attention_max_distance", "max_distance", 128, lambda config: _bias(config).max_distance),
    Field("layer_norm_epsilon", "epsilon", 1e-6),
    constant(is_encoder_decoder=True, pad_token_id=0, decoder_start_token_id=0),
)
"""The options that T5 and Switch Transformers share."""


def _read_ffn(settings: Settings, found: Arguments, default: str = "relu") -> Arguments:
    stated = settings.given("feed_forward_proj", default=default)
    activation = settings.activation("feed_forward_proj", default=stated, prefix="gated-")
    # "gated-gelu" means the tanh form.
    activation = "gelu_tanh" if stated == "gated-gelu" else activation
    return {"activation": activation, "gated": stated.startswith("gated-")}


def _write_ffn(config: EncoderDecoderConfig) -> dict[str, Any]:
    ffn = parts.dense_of(parts.first(config.decoder))
    gated = isinstance(ffn, GLUConfig)
    name = {"gelu_tanh": "gelu"}.get(ffn.activation) if gated else None
    return {"feed_forward_proj": "gated-" * gated + (name or activation_name(ffn.activation))}


def _read_head(settings: Settings, found: Arguments) -> Arguments:
    scaled = settings.given("scale_decoder_outputs", default=settings.given("tie_word_embeddings", default=True))
    return {"tied": scaled or _ties(settings), "scaled": scaled}


def _ties(settings: Settings) -> bool:
    """Whether the head is tied. Files of transformers 5 always state that it is, so weights decide if there are any."""
    stored = settings.stores("lm_head.weight")
    return settings.given("tie_word_embeddings", default=True) if stored is None else not stored


def _write_head(config: EncoderDecoderConfig) -> dict[str, Any]:
    head = config.decoder.head
    scaled = isinstance(head, TiedHead | ScaledHead) and head.scale != 1
    return _write_tied(config) | {"scale_decoder_outputs": scaled}


def _read_umt5_head(settings: Settings, found: Arguments) -> Arguments:
    """Published files state `tie_word_embeddings = false`, have an output matrix and do not scale hidden states. Files
    written by transformers 5 always state that weights are tied, and its class then scales hidden states."""
    scaled = settings.given("scale_decoder_outputs", default=settings.given("tie_word_embeddings", default=True))
    return {"tied": _ties(settings), "scaled": scaled}


def _write_tied(config: EncoderDecoderConfig) -> dict[str, Any]:
    return {"tie_word_embeddings": isinstance(config.decoder.head, TiedHead)}


def _t5(*, tied: bool, scaled: bool, **given: Any) -> EncoderDecoderConfig:
    """A T5 whose tied logits are scaled only if `scaled`."""
    pair = t5(tied=tied, **given)
    if not tied or scaled:
        return pair
    return dataclasses.replace(pair, decoder=dataclasses.replace(pair.decoder, head=TiedHead()))


_BIAS = "SelfAttention.relative_attention_bias.weight"


def _umt5(*, tied: bool, scaled: bool, width: int, **given: Any) -> EncoderDecoderConfig:
    """A UMT5 whose scores, tied or not, may be `scaled` or not."""
    pair = _t5(tied=tied, scaled=scaled, width=width, distances=LayerRelativeBiasConfig, **given)
    if tied or not scaled:
        return pair
    return dataclasses.replace(pair, decoder=dataclasses.replace(pair.decoder, head=ScaledHead(scale=width**-0.5)))


FFN = Callable[[parts.LayerRef, str], Iterator[Tensor]]
"""(layer, start of the names of its half) -> tensors of its ffn."""


def tensors(config: EncoderDecoderConfig, ffn: FFN) -> Iterator[Tensor]:
    """The tensors with T5's names."""
    yield from parts.under("decoder", parts.embedding(config.decoder, "shared.weight"))
    for side in ("encoder", "decoder"):
        yield from parts.under(side, _side(getattr(config, side), side, ffn))
    yield from parts.under("decoder", parts.head(config.decoder, "lm_head"))


def _side(config: TransformerConfig, side: str, ffn: FFN) -> Iterator[Tensor]:
    if config.relative_bias:
        yield from parts.relative_bias(config, f"{side}.block.0.layer.0.{_BIAS}")
    for layer in parts.layers(config):
        name = f"{side}.block.{layer.number}.layer"
        if not config.relative_bias:
            yield from _own_biases(layer, f"{name}.0.{_BIAS}")
        yield from parts.layer_norm(layer, f"{name}.0.layer_norm", "mixer_norm")
        yield from parts.attention(layer, (f"{name}.0.SelfAttention.{part}" for part in "qkvo"))
        if layer.block.cross:
            yield from parts.layer_norm(layer, f"{name}.1.layer_norm", "cross_norm")
            yield from parts.attention(layer, (f"{name}.1.EncDecAttention.{part}" for part in "qkvo"), branch="cross")
        last = 2 if layer.block.cross else 1
        yield from parts.layer_norm(layer, f"{name}.{last}.layer_norm", "ffn_norm")
        yield from ffn(layer, f"{name}.{last}")
    yield from parts.norm(f"{side}.final_layer_norm", config.final_norm, "final_norm", config.width)


def _own_biases(layer: parts.LayerRef, name: str) -> Iterator[Tensor]:
    """The relative-bias table of one layer, [r, n]."""
    bias = parts.attention_of(layer.block).scores.bias
    if not isinstance(bias, LayerRelativeBiasConfig):
        raise ValueError(f"scores.bias is {bias}: this family requires a LayerRelativeBiasConfig")
    yield Tensor(name, "r n", (layer.leaf("mixer/relative_bias/table", "r n"),), layer.sizes | {"r": bias.buckets})


def _ffn(layer: parts.LayerRef, name: str) -> Iterator[Tensor]:
    name, gated = f"{name}.DenseReluDense", isinstance(layer.block.ffn, GLUConfig)
    into = {"gate": f"{name}.wi_0", "up": f"{name}.wi_1"} if gated else {"up": f"{name}.wi"}
    yield from parts.ffn(layer, into, f"{name}.wo")


COPIES: dict[str, str] = dict.fromkeys(
    ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"), "shared.weight"
)
UNREAD = (r"EncDecAttention\.relative_attention_bias\.weight$",)

_FFN = Pair(_read_ffn, _write_ffn)
_GATED = Pair(functools.partial(_read_ffn, default="gated-gelu"), _write_ffn)
_MT5: Table = (
    *PAIR,
    _GATED,
    # Its class scales no hidden states.
    Pair(lambda settings, found: {"tied": _ties(settings), "scaled": False}, _write_tied),
)

_UMT5: Table = (*PAIR, _GATED, Pair(_read_umt5_head, _write_head))


def _family(kind: str, architecture: str, fields: Table, build: Callable[..., EncoderDecoderConfig] = _t5) -> Family:
    maps = functools.partial(tensors, ffn=_ffn)
    return Family(kind, architecture, build, fields, maps, copies=COPIES, unread=UNREAD, kind=EncoderDecoderConfig)


FAMILIES = (
    _family("t5", "T5ForConditionalGeneration", (*PAIR, _FFN, Pair(_read_head, _write_head))),
    _family("mt5", "MT5ForConditionalGeneration", _MT5),
    _family("umt5", "UMT5ForConditionalGeneration", _UMT5, _umt5),
)

"""Checkpoints of BART, mBART, Marian (the 2017 Transformer) and PEGASUS (its pre-norm form)."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

from llm_jax.core.checks import check_divides
from llm_jax.interop import changes, parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Arguments, Field, Nonlinearity, Only, Pair, Table, constant
from llm_jax.interop.mapping import Leaf, Tensor
from llm_jax.interop.settings import Settings
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import EncoderDecoderConfig, TransformerConfig
from llm_jax.models.families.bart import bart, original


def _sized(build: Callable[..., EncoderDecoderConfig]) -> Callable[..., EncoderDecoderConfig]:
    """The family's function with additional arguments for the sizes of the decoder."""

    def built(*, decoder_heads: int, decoder_hidden: int, **given: Any) -> EncoderDecoderConfig:
        pair = build(**given)
        head_dim = pair.width // decoder_heads

        def sized(_: int, block: BlockConfig) -> BlockConfig:
            mixer, cross = (
                dataclasses.replace(one, heads=decoder_heads, head_dim=head_dim, kv_heads=decoder_heads)
                for one in (parts.attention_of(block), parts.cross_of(block))
            )
            ffn = dataclasses.replace(parts.dense_of(block), hidden=decoder_hidden)
            return dataclasses.replace(block, mixer=mixer, cross=cross, ffn=ffn)

        return dataclasses.replace(pair, decoder=changes.changed(pair.decoder, sized))

    return built


def _check_decoder(settings: Settings, found: Arguments) -> Arguments:
    check_divides(found["decoder_heads"], found["width"], "decoder_attention_heads", "d_model")
    return {}


def _encoder(config: EncoderDecoderConfig) -> BlockConfig:
    return parts.first(config.encoder)


def _decoder(config: EncoderDecoderConfig) -> BlockConfig:
    return parts.first(config.decoder)


# transformers' classes of these families ignore the options of norm placement.
_PRE_NORM: Table = (
    Only("tie_word_embeddings", True, written=True),
    Field("encoder_layers", "layers"),
    Field("decoder_layers", "decoder_layers"),
    Field("encoder_attention_heads", "heads", held=lambda config: parts.attention_of(_encoder(config)).heads),
    Field("decoder_attention_heads", "decoder_heads", held=lambda config: parts.cross_of(_decoder(config)).heads),
    Field("d_model", "width"),
    Pair(_check_decoder),
    Field("encoder_ffn_dim", "hidden", held=lambda config: parts.dense_of(_encoder(config)).hidden),
    Field("decoder_ffn_dim", "decoder_hidden", held=lambda config: parts.dense_of(_decoder(config)).hidden),
    Field("vocab_size", "vocab_size"),
    Field("max_position_embeddings", "max_length", 1024),
    Nonlinearity("activation_function"),
    Field("scale_embedding", "scaled", False, lambda config: config.decoder.embed.scale != 1),
    # transformers requires these special tokens; a model config has none.
    constant(is_encoder_decoder=True, pad_token_id=0, decoder_start_token_id=0),
)
_FIELDS: Table = (*_PRE_NORM, Only("normalize_before", False), Only("add_final_layer_norm", False))
_MARIAN: Table = (
    *_FIELDS,
    Only("share_encoder_decoder_embeddings", True),
    Only("decoder_vocab_size", lambda found: found["vocab_size"]),
    Only("normalize_embedding", False),
)


def _tensors(config: EncoderDecoderConfig) -> Iterator[Tensor]:
    yield from parts.under("decoder", parts.embedding(config.decoder, "model.shared.weight"))
    for side in ("encoder", "decoder"):
        yield from parts.under(side, _side(getattr(config, side), f"model.{side}"))
    if parts.head_of(config.decoder).bias:
        bias = Tensor("final_logits_bias", "1 v", (Leaf("head/bias", "v"),), {"v": config.vocab_size})
        yield from parts.under("decoder", (bias,))


def _side(config: TransformerConfig, side: str) -> Iterator[Tensor]:
    stream = "stream_norm" if config.final_norm is None else "norm"
    if config.embed.norm:
        yield from parts.learned_positions(config, f"{side}.embed_positions.weight")
        yield from parts.norm(f"{side}.layernorm_embedding", config.embed.norm, "embed/norm", config.width)
    for layer in parts.layers(config):
        name = f"{side}.layers.{layer.number}"
        for theirs, branch in (("self_attn", "mixer"), ("encoder_attn", "cross")):
            if getattr(layer.block, branch):
                projections = (f"{name}.{theirs}.{part}_proj" for part in ("q", "k", "v", "out"))
                yield from parts.attention(layer, projections, branch=branch)
                yield from parts.layer_norm(layer, f"{name}.{theirs}_layer_norm", f"{branch}_{stream}")
        yield from parts.ffn(layer, {"up": f"{name}.fc1"}, f"{name}.fc2")
        yield from parts.layer_norm(layer, f"{name}.final_layer_norm", f"ffn_{stream}")
    if config.final_norm is not None:
        yield from parts.norm(f"{side}.layer_norm", config.final_norm, "final_norm", config.width)


def _family(kind: str, architecture: str, build: Callable[..., EncoderDecoderConfig], fields: Table) -> Family:
    names = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
    # Old files contain sinusoidal position tables.
    unread = (r"embed_positions\.weight$", r"^model\.(en|de)coder\.version$")
    copies: dict[str, str] = dict.fromkeys(names, "model.shared.weight")
    # Checkpoints of the base model have no head, so no bias of the logits.
    optional = {"unread": unread, "absent": ("final_logits_bias",)}
    return Family(
        kind,
        architecture,
        _sized(build),
        fields,
        _tensors,
        prefix="model.",
        copies=copies,
        **optional,
        kind=EncoderDecoderConfig,
    )


_PEGASUS = functools.partial(original, bias=True, pre_norm=True)
FAMILIES = (
    _family("bart", "BartForConditionalGeneration", bart, _FIELDS),
    _family("mbart", "MBartForConditionalGeneration", functools.partial(bart, pre_norm=True), _PRE_NORM),
    _family("pegasus", "PegasusForConditionalGeneration", _PEGASUS, _PRE_NORM),
    _family("marian", "MarianMTModel", functools.partial(original, bias=True), _MARIAN),
)

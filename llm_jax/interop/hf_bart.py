"""Checkpoints of BART, and of Marian, whose model is the 2017 Transformer."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from llm_jax.core.checks import check_divides
from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.mapping import Leaf, Tensor
from llm_jax.interop.settings import Settings, activation_name
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import EncoderDecoderConfig, TransformerConfig
from llm_jax.models.families.bart import bart, original


def _common(settings: Settings, length: int) -> dict[str, Any]:
    """What the functions of both families take; `length` where the file says none."""
    settings.only("tie_word_embeddings", True, default=True)
    for option, supported in (("normalize_before", False), ("add_final_layer_norm", False)):
        settings.only(option, supported, default=supported)
    return {
        "layers": settings.need("encoder_layers"),
        "decoder_layers": settings.need("decoder_layers"),
        "heads": settings.need("encoder_attention_heads"),
        "width": settings.need("d_model"),
        "hidden": settings.need("encoder_ffn_dim"),
        "vocab_size": settings.need("vocab_size"),
        "max_length": settings.given("max_position_embeddings", default=length),
        "activation": settings.activation("activation_function"),
        "scaled": settings.given("scale_embedding", default=False),
    }


def _own_sizes(settings: Settings, pair: EncoderDecoderConfig) -> EncoderDecoderConfig:
    """The pair with the heads and the ffn of its decoder, which may be other than the encoder's."""
    heads, hidden = settings.need("decoder_attention_heads"), settings.need("decoder_ffn_dim")
    check_divides(heads, pair.width, "decoder_attention_heads", "d_model")
    head_dim = pair.width // heads

    def sized(_: int, block: BlockConfig) -> BlockConfig:
        mixer, cross = (
            dataclasses.replace(one, heads=heads, head_dim=head_dim, kv_heads=heads)
            for one in (parts.attention_of(block), parts.cross_of(block))
        )
        ffn = dataclasses.replace(parts.dense_of(block), hidden=hidden)
        return dataclasses.replace(block, mixer=mixer, cross=cross, ffn=ffn)

    return dataclasses.replace(pair, decoder=parts.changed(pair.decoder, sized))


def _write(config: EncoderDecoderConfig) -> dict[str, Any]:
    decoder, block, reads = config.decoder, parts.first(config.decoder), parts.first(config.encoder)
    return {
        "encoder_layers": config.encoder.depth,
        "decoder_layers": decoder.depth,
        "encoder_attention_heads": parts.attention_of(reads).heads,
        "decoder_attention_heads": parts.cross_of(block).heads,
        "encoder_ffn_dim": parts.dense_of(reads).hidden,
        "decoder_ffn_dim": parts.dense_of(block).hidden,
        "d_model": decoder.width,
        "vocab_size": decoder.vocab_size,
        "max_position_embeddings": decoder.max_length,
        "activation_function": activation_name(parts.dense_of(block).activation),
        "scale_embedding": decoder.embed.scale != 1,
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
        # Ours knows no special tokens, and transformers cannot do without these.
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }


def _read_bart(settings: Settings) -> EncoderDecoderConfig:
    return _own_sizes(settings, bart(**_common(settings, 1024)))


def _read_marian(settings: Settings) -> EncoderDecoderConfig:
    settings.only("share_encoder_decoder_embeddings", True, default=True)
    settings.only("decoder_vocab_size", settings.need("vocab_size"), default=settings.need("vocab_size"))
    settings.only("normalize_embedding", False, default=False)
    return _own_sizes(settings, original(bias=True, **_common(settings, 1024)))


def _tensors(config: EncoderDecoderConfig) -> Iterator[Tensor]:
    yield from parts.under("decoder", parts.embedding(config.decoder, "model.shared.weight"))
    for side in ("encoder", "decoder"):
        yield from parts.under(side, _side(getattr(config, side), f"model.{side}"))
    if parts.head_of(config.decoder).bias:
        bias = Tensor("final_logits_bias", "1 v", (Leaf("head/bias", "v"),), {"v": config.vocab_size})
        yield from parts.under("decoder", (bias,))


def _side(config: TransformerConfig, side: str) -> Iterator[Tensor]:
    if config.embed.norm:
        yield from parts.learned_positions(config, f"{side}.embed_positions.weight")
        yield from parts.norm(f"{side}.layernorm_embedding", config.embed.norm, "embed/norm", config.width)
    for place in parts.places(config):
        name = f"{side}.layers.{place.number}"
        for theirs, branch in (("self_attn", "mixer"), ("encoder_attn", "cross")):
            if getattr(place.block, branch):
                projections = (f"{name}.{theirs}.{part}_proj" for part in ("q", "k", "v", "out"))
                yield from parts.attention(place, projections, branch=branch)
                yield from parts.layer_norm(place, f"{name}.{theirs}_layer_norm", f"{branch}_stream_norm")
        yield from parts.ffn(place, {"up": f"{name}.fc1"}, f"{name}.fc2")
        yield from parts.layer_norm(place, f"{name}.final_layer_norm", "ffn_stream_norm")


def _family(kind: str, architecture: str, read: Any) -> Family:
    names = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
    # Old files carry Marian's sinusoids.
    unread = (r"embed_positions\.weight$", r"^model\.(en|de)coder\.version$")
    copies: dict[str, str] = dict.fromkeys(names, "model.shared.weight")
    # Checkpoints of the bare model have no scores, and so no bias of them.
    optional = {"unread": unread, "absent": ("final_logits_bias",)}
    return Family(
        kind,
        architecture,
        read,
        _write,
        _tensors,
        prefix="model.",
        copies=copies,
        **optional,
        kind=EncoderDecoderConfig,
    )


FAMILIES = (
    _family("bart", "BartForConditionalGeneration", _read_bart),
    _family("marian", "MarianMTModel", _read_marian),
)

"""Checkpoints of ModernBERT, with the heads of its classes but the multiple choice."""

from collections.abc import Iterator
from typing import Any

from llm_jax.core.checks import check, given
from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Arguments, Field, Nonlinearity, Only, Pair, Table, tying
from llm_jax.interop.hf_llama import BIAS, fused_ffn
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.rope_options import KINDS, read_ropes_by_kind, write_rope
from llm_jax.interop.settings import Settings, activation_name, labels, layer_types, layer_windows
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.attention.masks import Bidirectional, BidirectionalWindow
from llm_jax.layers.initialisers import Normal
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.modernbert import INIT, head_transform, modernbert, sequence_head, span_head, token_head
from llm_jax.models.heads import AnyHead, ClassHead, TiedHead

_CLASSES = {
    "sequence": "ModernBertForSequenceClassification",
    "token": "ModernBertForTokenClassification",
    "span": "ModernBertForQuestionAnswering",
}
_MASKED = "ModernBertForMaskedLM"


def _read_head(settings: Settings, found: Arguments) -> Arguments:
    norm = LayerNormConfig(found["epsilon"], found["norm_bias"])
    shape = {"bias": settings.given("classifier_bias", default=False), "init": found["init"]}
    before = head_transform(found["layers"], norm, settings.activation("classifier_activation"), **shape)

    def row() -> AnyHead:
        settings.only("classifier_pooling", "cls", default="cls")
        return sequence_head(settings.classes, before)

    makers = {
        _MASKED: lambda: TiedHead(bias=settings.given("decoder_bias", default=True), transform=before),
        _CLASSES["sequence"]: row,
        _CLASSES["token"]: lambda: token_head(settings.classes, before),
        _CLASSES["span"]: lambda: span_head(before),
    }
    head = given(settings.head(makers, default=_MASKED), "all classes of the family have a head")
    return {"head": head, "tied": settings.given("tie_word_embeddings", default=True)}


def _write_head(config: TransformerConfig) -> dict[str, Any]:
    head = parts.head_of(config)
    before = given(head.transform, "the head has no transform: this family requires one")
    if before.activation is None:
        raise ValueError("the transform of the head has no activation: this family requires one")
    written = {"classifier_activation": activation_name(before.activation), "classifier_bias": before.bias}
    if isinstance(head, ClassHead):
        kind = {"architectures": [_CLASSES[head.of]], "classifier_pooling": "cls"}
        return written | kind | labels(head.classes)
    tied = isinstance(head, TiedHead)
    return written | {"architectures": [_MASKED], "decoder_bias": head.bias, "tie_word_embeddings": tied}


def _read_positions(settings: Settings, found: Arguments) -> Arguments:
    """A file states the tokens on both sides together."""
    layers, length = found["layers"], settings.given("max_position_embeddings", default=8192)
    every = settings.given("global_attn_every_n_layers", default=3)
    kinds = settings.given("layer_types", default=[KINDS[layer % every != 0] for layer in range(layers)])
    reach = layer_windows(kinds, layers, settings.given("local_attention", default=128) // 2)
    bases = settings.given("global_rope_theta", default=160_000.0), settings.given("local_rope_theta", default=1e4)
    rope, local = read_ropes_by_kind(settings, found["width"] // found["heads"], length, bases)
    return {"reach": reach, "rope": rope, "local_rope": local, "max_length": length}


def _reach(mixer: AttentionConfig) -> int | None:
    if isinstance(mixer.mask, BidirectionalWindow):
        return mixer.mask.reach
    check(
        isinstance(mixer.mask, Bidirectional),
        f"mask is {type(mixer.mask).__name__}: this family requires Bidirectional or BidirectionalWindow",
    )
    return None


def _write_positions(config: TransformerConfig) -> dict[str, Any]:
    mixers = [parts.attention_of(layer.block) for layer in parts.layers(config)]
    reach = [_reach(mixer) for mixer in mixers]
    ropes = {
        kind: write_rope(parts.rope_of(mixer))["rope_parameters"]
        for kind, mixer in zip(layer_types(reach), mixers, strict=True)
    }
    near = next((one for one in reach if one is not None), 64)
    lengths = {"max_position_embeddings": config.max_length, "local_attention": 2 * near}
    return lengths | {"layer_types": layer_types(reach), "rope_parameters": ropes}


def _read_init(settings: Settings, found: Arguments) -> Arguments:
    return {"init": Normal(INIT.stddev, settings.given("initializer_cutoff_factor", default=INIT.cut))}


def _write_init(config: TransformerConfig) -> dict[str, Any]:
    init = config.embed.init
    return {"initializer_cutoff_factor": init.cut} if isinstance(init, Normal) and init.cut else {}


def _norm_bias(config: TransformerConfig) -> bool:
    norm = parts.norm_of(parts.first(config))
    return isinstance(norm, LayerNormConfig) and norm.bias


_FIELDS: Table = (
    Only("rope_scaling", None),
    Field("num_hidden_layers", "layers"),
    Field("num_attention_heads", "heads"),
    Field("hidden_size", "width"),
    Field("intermediate_size", "hidden"),
    Field("vocab_size", "vocab_size"),
    Nonlinearity("hidden_activation"),
    Field("norm_eps", "epsilon", 1e-5),
    Field("norm_bias", "norm_bias", False, _norm_bias),
    BIAS,
    Field("mlp_bias", "ffn_bias", False),
    Pair(_read_positions, _write_positions),
    Pair(_read_init, _write_init),
    Pair(_read_head, _write_head),
)


def _tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "model.embeddings.tok_embeddings.weight")
    yield from parts.norm("model.embeddings.norm", config.embed.norm, "embed/norm", config.width)
    for layer in parts.layers(config):
        name = f"model.layers.{layer.number}"
        if layer.number:
            yield from parts.layer_norm(layer, f"{name}.attn_norm", "mixer_norm")
        heads = parts.attention_of(layer.block).heads
        yield from parts.fused_attention(layer, f"{name}.attn.Wqkv", "(s h) d", "d s h", (heads, heads, heads))
        yield from parts.attention_out(layer, f"{name}.attn.Wo")
        yield from parts.layer_norm(layer, f"{name}.mlp_norm", "ffn_norm")
        yield from fused_ffn(layer, f"{name}.mlp", "Wi", "Wo")
    yield from parts.norm("model.final_norm", config.final_norm, "final_norm", config.width)
    yield from parts.transform(config, "head.dense", "head.norm")
    if isinstance(config.head, ClassHead):
        yield from parts.dense("classifier", "head", config.width, config.head.classes, config.head.bias)
    else:
        yield from parts.head(config, "decoder")


FAMILIES = (
    Family(
        "modernbert",
        _MASKED,
        tying(modernbert),
        _FIELDS,
        _tensors,
        prefix="model.",
        copies={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
        unread=(r"rotary_emb\.inv_freq$",),
    ),
)

"""Checkpoints of BERT, RoBERTa, ELECTRA and ALBERT, with the heads of all their classes."""

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any

from llm_jax.core.checks import given
from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.mapping import Leaf, Tensor
from llm_jax.interop.settings import Settings, activation_name, labels
from llm_jax.layers.activations import Activation
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.albert import albert
from llm_jax.models.families.bert import bert, discriminator
from llm_jax.models.families.encoder import masked_lm_head, row_head, span_head
from llm_jax.models.heads import AnyHead, ClassHead, HeadConfig, TiedHead


@dataclasses.dataclass(frozen=True)
class _Names:
    """How a family names its model and the parts of its heads."""

    model_type: str
    prefix: str
    """Of its classes: BertForMaskedLM."""
    masked: tuple[str, str, str]
    """Dense layer, norm and bias of the scores of masked tokens."""
    pooled: tuple[str, str]
    """Dense layer and scores of whole rows."""
    decoder: str
    """The scores of masked tokens, which are the embedding's."""
    activation: Activation = "tanh"
    """Of the dense layer of whole rows."""
    masked_activation: Activation | None = None
    """Of the dense layer of masked tokens; None: the model's."""
    unread: tuple[str, ...] = ()
    """What a checkpoint of several heads holds beside the one that is read."""


_BERT = _Names(
    "bert",
    "Bert",
    ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),
    ("bert.pooler.dense", "classifier"),
    "cls.predictions.decoder",
    unread=(r"^cls\.seq_relationship\.", r"^bert\.pooler\."),
)
_ROBERTA = _Names(
    "roberta",
    "Roberta",
    ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    ("classifier.dense", "classifier.out_proj"),
    "lm_head.decoder",
    masked_activation="gelu",
    unread=(r"^roberta\.pooler\.",),
)
_ELECTRA = _Names(
    "electra",
    "Electra",
    ("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"),
    ("classifier.dense", "classifier.out_proj"),
    "generator_lm_head",
    activation="gelu",
    masked_activation="gelu",
)
_ALBERT = _Names(
    "albert",
    "Albert",
    ("predictions.dense", "predictions.LayerNorm", "predictions.bias"),
    ("albert.pooler", "classifier"),
    "predictions.decoder",
    unread=(r"^sop_classifier\.", r"^albert\.pooler\."),
)


def _head(settings: Settings, names: _Names, activation: Activation, epsilon: float) -> AnyHead:
    heads = {
        "ForMaskedLM": lambda: masked_lm_head(names.masked_activation or activation, epsilon),
        "ForSequenceClassification": lambda: row_head(settings.classes, names.activation),
        "ForTokenClassification": lambda: ClassHead(settings.classes),
        "ForQuestionAnswering": span_head,
    }
    # ELECTRA's second model is trained to tell replaced tokens; the others are, beside masked tokens, on pairs of rows.
    heads["ForPreTraining"] = (lambda: discriminator(activation)) if names is _ELECTRA else heads["ForMaskedLM"]
    makers = {names.prefix + kind: head for kind, head in heads.items()}
    return given(
        settings.head(makers, default=f"{names.prefix}ForMaskedLM"), "all classes of these families have a head"
    )


def _write_head(config: TransformerConfig, names: _Names) -> dict[str, Any]:
    head = config.head
    if not isinstance(head, ClassHead):
        tied = isinstance(head, TiedHead)
        return {"architectures": [f"{names.prefix}ForMaskedLM"], "tie_word_embeddings": tied}
    kind = {"row": "ForSequenceClassification", "span": "ForQuestionAnswering", "token": "ForTokenClassification"}
    name = "ForPreTraining" if head.of == "token" and head.transform else kind[head.of]
    return {"architectures": [names.prefix + name]} | labels(head.classes)


def _common(settings: Settings, names: _Names, activation: str) -> dict[str, Any]:
    """What the functions of all these families take."""
    for option, supported in (("is_decoder", False), ("add_cross_attention", False)):
        settings.only(option, supported, default=supported)
    settings.only("position_embedding_type", "absolute", default="absolute")
    activation = settings.activation("hidden_act", default=activation)
    epsilon = settings.given("layer_norm_eps", default=1e-12)
    return {
        "layers": settings.need("num_hidden_layers"),
        "heads": settings.need("num_attention_heads"),
        "width": settings.need("hidden_size"),
        "vocab_size": settings.need("vocab_size"),
        "hidden": settings.need("intermediate_size"),
        "types": settings.given("type_vocab_size", default=2),
        "activation": activation,
        "epsilon": epsilon,
        "head": _head(settings, names, activation, epsilon),
    }


def _write_common(config: TransformerConfig, names: _Names) -> dict[str, Any]:
    block = parts.first(config)
    ffn = parts.dense_of(block)
    return _write_head(config, names) | {
        "num_hidden_layers": config.depth,
        "num_attention_heads": parts.attention_of(block).heads,
        "hidden_size": config.width,
        "vocab_size": config.vocab_size,
        "intermediate_size": ffn.hidden,
        "type_vocab_size": config.embed.types,
        "hidden_act": activation_name(ffn.activation),
        "layer_norm_eps": parts.norm_of(block).epsilon,
        "max_position_embeddings": config.max_length + parts.learned_of(config).offset,
    }


def _read_bert(settings: Settings) -> TransformerConfig:
    length = settings.given("max_position_embeddings", default=512)
    return _tied(settings, bert(max_length=length, **_common(settings, _BERT, "gelu")))


def _tied(settings: Settings, config: TransformerConfig) -> TransformerConfig:
    return parts.with_tied(config, settings.given("tie_word_embeddings", default=True))


def _read_roberta(settings: Settings) -> TransformerConfig:
    # Positions are counted from the row after that of the padding token.
    offset = settings.given("pad_token_id", default=1) + 1
    length = settings.given("max_position_embeddings", default=514) - offset
    return _tied(settings, bert(max_length=length, offset=offset, **_common(settings, _ROBERTA, "gelu")))


def _write_roberta(config: TransformerConfig) -> dict[str, Any]:
    return _write_common(config, _ROBERTA) | {"pad_token_id": parts.learned_of(config).offset - 1}


def _read_electra(settings: Settings) -> TransformerConfig:
    common = _common(settings, _ELECTRA, "gelu")
    narrow = settings.given("embedding_size", default=128)
    narrow = None if narrow == common["width"] else narrow
    length = settings.given("max_position_embeddings", default=512)
    return _tied(settings, bert(max_length=length, narrow=narrow, **common))


def _write_electra(config: TransformerConfig) -> dict[str, Any]:
    return _write_common(config, _ELECTRA) | {"embedding_size": config.embed.table_width(config.width)}


def _read_albert(settings: Settings) -> TransformerConfig:
    config = albert(
        max_length=settings.given("max_position_embeddings", default=512),
        narrow=settings.given("embedding_size", default=128),
        groups=settings.given("num_hidden_groups", default=1),
        inner=settings.given("inner_group_num", default=1),
        **_common(settings, _ALBERT, "gelu_new"),
    )
    return _tied(settings, config)


def _write_albert(config: TransformerConfig) -> dict[str, Any]:
    first = config.segments[0]
    return _write_common(config, _ALBERT) | {
        "num_hidden_layers": sum(segment.repeats for segment in config.segments),
        "embedding_size": config.embed.table_width(config.width),
        "num_hidden_groups": len(config.segments),
        "inner_group_num": len(first.blocks),
    }


def _embedding(config: TransformerConfig, name: str) -> Iterator[Tensor]:
    yield from parts.embedding(config, f"{name}.word_embeddings.weight")
    yield from parts.learned_positions(config, f"{name}.position_embeddings.weight")
    yield from parts.types(config, f"{name}.token_type_embeddings.weight")
    width = config.embed.sum_width(config.width)
    yield from parts.norm(f"{name}.LayerNorm", config.embed.norm, "embed/norm", width)


def _tensors(config: TransformerConfig, names: _Names) -> Iterator[Tensor]:
    yield from _embedding(config, f"{names.model_type}.embeddings")
    yield from parts.widening(config, f"{names.model_type}.embeddings_project")
    for place in parts.places(config):
        name = f"{names.model_type}.encoder.layer.{place.number}"
        layers = ("self.query", "self.key", "self.value", "output.dense")
        yield from parts.attention(place, (f"{name}.attention.{part}" for part in layers))
        yield from parts.layer_norm(place, f"{name}.attention.output.LayerNorm", "mixer_stream_norm")
        yield from parts.ffn(place, {"up": f"{name}.intermediate.dense"}, f"{name}.output.dense")
        yield from parts.layer_norm(place, f"{name}.output.LayerNorm", "ffn_stream_norm")
    yield from _head_tensors(config, names)


def _albert_tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from _embedding(config, "albert.embeddings")
    yield from parts.widening(config, "albert.encoder.embedding_hidden_mapping_in")
    inner = len(config.segments[0].blocks)
    for place in parts.places(config):
        group, number = divmod(place.number, inner)
        name = f"albert.encoder.albert_layer_groups.{group}.albert_layers.{number}"
        yield from parts.attention(place, (f"{name}.attention.{part}" for part in ("query", "key", "value", "dense")))
        yield from parts.layer_norm(place, f"{name}.attention.LayerNorm", "mixer_stream_norm")
        yield from parts.ffn(place, {"up": f"{name}.ffn"}, f"{name}.ffn_output")
        yield from parts.layer_norm(place, f"{name}.full_layer_layer_norm", "ffn_stream_norm")
    yield from _head_tensors(config, _ALBERT)


def _head_tensors(config: TransformerConfig, names: _Names) -> Iterator[Tensor]:
    head = config.head
    if not isinstance(head, ClassHead):
        yield from parts.transform(config, *names.masked[:2])
        if isinstance(head, HeadConfig):
            # A bias of its own goes with a matrix of its own; transformers then reads no other.
            yield from parts.head(config, names.decoder)
            return
        yield Tensor(names.masked[2], "v", (Leaf("head/bias", "v"),), {"v": parts.vocabulary(config)})
        return
    scores = {"token": "classifier", "span": "qa_outputs", "row": names.pooled[1]}[head.of]
    if head.of == "row":
        yield from parts.transform(config, names.pooled[0])
    elif head.transform:
        yield from parts.transform(config, "discriminator_predictions.dense")
        scores = "discriminator_predictions.dense_prediction"
    yield from parts.dense(scores, "head", config.width, head.classes, head.bias)


def _family(names: _Names, read: Any, write: Any, tensors: Any) -> Family:
    embedding = f"{names.model_type}.embeddings.word_embeddings.weight"
    return Family(
        names.model_type,
        f"{names.prefix}ForMaskedLM",
        read,
        write,
        tensors,
        prefix=f"{names.model_type}.",
        copies={f"{names.decoder}.weight": embedding, f"{names.decoder}.bias": names.masked[2]},
        unread=(r"embeddings\.position_ids$", *names.unread, f"^{re.escape(names.masked[2])}$"),
        counts_tokens=lambda config: names is _ROBERTA,
        renamed=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    )


FAMILIES = (
    _family(_BERT, _read_bert, functools.partial(_write_common, names=_BERT), functools.partial(_tensors, names=_BERT)),
    _family(_ROBERTA, _read_roberta, _write_roberta, functools.partial(_tensors, names=_ROBERTA)),
    _family(_ELECTRA, _read_electra, _write_electra, functools.partial(_tensors, names=_ELECTRA)),
    _family(_ALBERT, _read_albert, _write_albert, _albert_tensors),
)

"""Checkpoints of BERT, RoBERTa, XLM-R, CamemBERT, MPNet, ELECTRA and ALBERT, with the heads of all their classes but
the multiple choice."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

from llm_jax.core.checks import given
from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Arguments, Field, Nonlinearity, Only, Pair, Table, constant, tying
from llm_jax.interop.mapping import Leaf, Tensor
from llm_jax.interop.settings import Settings, labels
from llm_jax.layers.activations import Activation
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.albert import albert
from llm_jax.models.families.bert import bert, discriminator
from llm_jax.models.families.encoder import masked_lm_head, sequence_head, span_head
from llm_jax.models.families.mpnet import mpnet
from llm_jax.models.heads import AnyHead, ClassHead, HeadConfig, TiedHead


@dataclasses.dataclass(frozen=True)
class _Names:
    """The names of a family's classes and tensors."""

    model_type: str
    stem: str
    """First component of its tensors' names."""
    prefix: str
    """Prefix of its classes' names, such as Bert in BertForMaskedLM."""
    masked: tuple[str, str, str]
    """Dense layer, norm and output bias of the masked-LM head."""
    pooled: tuple[str, str]
    """Dense layer and output projection of the sequence classification head."""
    decoder: str
    """Output projection of the masked-LM head, tied to the embedding."""
    activation: Activation = "tanh"
    """Activation of the dense layer for sequence classification."""
    masked_activation: Activation | None = None
    """Activation of the dense layer for masked tokens; None: the model's."""
    unread: tuple[str, ...] = ()
    """Regular expressions of the tensors of other heads in a checkpoint with several heads."""
    attention: tuple[str, ...] = ("self.query", "self.key", "self.value", "output.dense")
    """Queries, keys, values and the output."""
    attention_norm: str = "output.LayerNorm"


_BERT = _Names(
    "bert",
    "bert",
    "Bert",
    ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),
    ("bert.pooler.dense", "classifier"),
    "cls.predictions.decoder",
    unread=(r"^cls\.seq_relationship\.", r"^bert\.pooler\."),
)
_ROBERTA = _Names(
    "roberta",
    "roberta",
    "Roberta",
    ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    ("classifier.dense", "classifier.out_proj"),
    "lm_head.decoder",
    masked_activation="gelu",
    unread=(r"^roberta\.pooler\.",),
)
_HEIRS = (
    dataclasses.replace(_ROBERTA, model_type="xlm-roberta", prefix="XLMRoberta"),
    dataclasses.replace(_ROBERTA, model_type="camembert", prefix="Camembert"),
)
_MPNET = dataclasses.replace(
    _ROBERTA,
    model_type="mpnet",
    stem="mpnet",
    prefix="MPNet",
    unread=(r"^mpnet\.pooler\.",),
    attention=("attn.q", "attn.k", "attn.v", "attn.o"),
    attention_norm="LayerNorm",
)
_ELECTRA = _Names(
    "electra",
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
        "ForSequenceClassification": lambda: sequence_head(settings.classes, names.activation),
        "ForTokenClassification": lambda: ClassHead(settings.classes),
        "ForQuestionAnswering": span_head,
    }
    # ELECTRA's discriminator detects replaced tokens. The others are pretrained on masked tokens and sentence pairs.
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
    kind = {"sequence": "ForSequenceClassification", "span": "ForQuestionAnswering", "token": "ForTokenClassification"}
    name = "ForPreTraining" if head.of == "token" and head.transform else kind[head.of]
    return {"architectures": [names.prefix + name]} | labels(head.classes)


def _fields(names: _Names, activation: str = "gelu") -> Table:
    """The options that all these families but MPNet share, except the maximum length."""
    return (
        Only("is_decoder", False),
        Only("add_cross_attention", False),
        Only("position_embedding_type", "absolute"),
        Field("type_vocab_size", "types", 2, lambda config: config.embed.types),
        *_shape(names, activation),
    )


def _shape(names: _Names, activation: str = "gelu") -> Table:
    """What all of them have in common."""
    return (
        Field("num_hidden_layers", "layers"),
        Field("num_attention_heads", "heads"),
        Field("hidden_size", "width"),
        Field("vocab_size", "vocab_size"),
        Field("intermediate_size", "hidden"),
        Nonlinearity("hidden_act", activation),
        Field("layer_norm_eps", "epsilon", 1e-12),
        Pair(
            lambda settings, found: {"head": _head(settings, names, found["activation"], found["epsilon"])},
            lambda config: _write_head(config, names),
        ),
        # Written with the head: a class head does not define it.
        Pair(lambda settings, found: {"tied": settings.given("tie_word_embeddings", default=True)}),
    )


_ROWS = Field("max_position_embeddings", "max_length", 512)


def _read_rows(settings: Settings, found: Arguments) -> Arguments:
    # Positions start at the index after the id of the padding token.
    offset = settings.given("pad_token_id", default=1) + 1
    return {"offset": offset, "max_length": settings.given("max_position_embeddings", default=514) - offset}


def _write_rows(config: TransformerConfig) -> dict[str, Any]:
    offset = parts.learned_of(config).offset
    return {"max_position_embeddings": config.max_length + offset, "pad_token_id": offset - 1}


def _read_mpnet_rows(settings: Settings, found: Arguments) -> Arguments:
    return {"max_length": settings.given("max_position_embeddings", default=512) - 2}


def _write_mpnet_rows(config: TransformerConfig) -> dict[str, Any]:
    return {"max_position_embeddings": config.max_length + 2}


# The class counts positions from 2 whatever `pad_token_id` is, and reads 32 rows of its table of distances.
_MPNET_FIELDS: Table = (
    *_shape(_MPNET),
    Pair(_read_mpnet_rows, _write_mpnet_rows),
    Only("relative_attention_num_buckets", 32, written=32),
    constant(pad_token_id=1),
)


def _electra(*, narrow: int, width: int, **given: Any) -> TransformerConfig:
    return bert(width=width, narrow=None if narrow == width else narrow, **given)


_NARROW = Field("embedding_size", "narrow", 128, lambda config: config.embed.table_width(config.width))
_ALBERT_FIELDS: Table = (
    *_fields(_ALBERT, "gelu_new"),
    _ROWS,
    _NARROW,
    Field("num_hidden_groups", "groups", 1, lambda config: len(config.segments)),
    Field("inner_group_num", "inner", 1, lambda config: len(config.segments[0].blocks)),
    Pair(write=lambda config: {"num_hidden_layers": sum(segment.repeats for segment in config.segments)}),
)


def _embedding(config: TransformerConfig, name: str) -> Iterator[Tensor]:
    yield from parts.embedding(config, f"{name}.word_embeddings.weight")
    yield from parts.learned_positions(config, f"{name}.position_embeddings.weight")
    yield from parts.types(config, f"{name}.token_type_embeddings.weight")
    width = config.embed.sum_width(config.width)
    yield from parts.norm(f"{name}.LayerNorm", config.embed.norm, "embed/norm", width)


def _tensors(config: TransformerConfig, names: _Names) -> Iterator[Tensor]:
    yield from _embedding(config, f"{names.stem}.embeddings")
    yield from parts.widening(config, f"{names.stem}.embeddings_project")
    if config.relative_bias:
        yield from parts.relative_bias(config, f"{names.stem}.encoder.relative_attention_bias.weight")
    for layer in parts.layers(config):
        name = f"{names.stem}.encoder.layer.{layer.number}"
        yield from parts.attention(layer, (f"{name}.attention.{part}" for part in names.attention))
        yield from parts.layer_norm(layer, f"{name}.attention.{names.attention_norm}", "mixer_stream_norm")
        yield from parts.ffn(layer, {"up": f"{name}.intermediate.dense"}, f"{name}.output.dense")
        yield from parts.layer_norm(layer, f"{name}.output.LayerNorm", "ffn_stream_norm")
    yield from _head_tensors(config, names)


def _albert_tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from _embedding(config, "albert.embeddings")
    yield from parts.widening(config, "albert.encoder.embedding_hidden_mapping_in")
    inner = len(config.segments[0].blocks)
    for layer in parts.layers(config):
        group, number = divmod(layer.number, inner)
        name = f"albert.encoder.albert_layer_groups.{group}.albert_layers.{number}"
        yield from parts.attention(layer, (f"{name}.attention.{part}" for part in ("query", "key", "value", "dense")))
        yield from parts.layer_norm(layer, f"{name}.attention.LayerNorm", "mixer_stream_norm")
        yield from parts.ffn(layer, {"up": f"{name}.ffn"}, f"{name}.ffn_output")
        yield from parts.layer_norm(layer, f"{name}.full_layer_layer_norm", "ffn_stream_norm")
    yield from _head_tensors(config, _ALBERT)


def _head_tensors(config: TransformerConfig, names: _Names) -> Iterator[Tensor]:
    head = config.head
    if not isinstance(head, ClassHead):
        yield from parts.transform(config, *names.masked[:2])
        if isinstance(head, HeadConfig):
            # An untied output projection has a bias of its own, and transformers then reads only that one.
            yield from parts.head(config, names.decoder)
            return
        yield Tensor(names.masked[2], "v", (Leaf("head/bias", "v"),), {"v": parts.vocabulary(config)})
        return
    scores = {"token": "classifier", "span": "qa_outputs", "sequence": names.pooled[1]}[head.of]
    if head.of == "sequence":
        yield from parts.transform(config, names.pooled[0])
    elif head.transform:
        yield from parts.transform(config, "discriminator_predictions.dense")
        scores = "discriminator_predictions.dense_prediction"
    yield from parts.dense(scores, "head", config.width, head.classes, head.bias)


def _family(
    names: _Names, fields: Table, build: Callable[..., TransformerConfig] = bert, tensors: Any = None
) -> Family:
    embedding = f"{names.stem}.embeddings.word_embeddings.weight"
    return Family(
        names.model_type,
        f"{names.prefix}ForMaskedLM",
        tying(build),
        fields,
        tensors or functools.partial(_tensors, names=names),
        prefix=f"{names.stem}.",
        copies={f"{names.decoder}.weight": embedding, f"{names.decoder}.bias": names.masked[2]},
        unread=(r"embeddings\.position_ids$", *names.unread, f"^{re.escape(names.masked[2])}$"),
        counts_tokens=lambda config: names.stem in ("roberta", "mpnet"),
        renamed=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    )


FAMILIES = (
    _family(_BERT, (*_fields(_BERT), _ROWS)),
    *(_family(names, (*_fields(names), Pair(_read_rows, _write_rows))) for names in (_ROBERTA, *_HEIRS)),
    _family(_MPNET, _MPNET_FIELDS, mpnet),
    _family(_ELECTRA, (*_fields(_ELECTRA), _ROWS, _NARROW), _electra),
    _family(_ALBERT, _ALBERT_FIELDS, albert, _albert_tensors),
)

"""Checkpoints of DistilBERT, with the heads of its classes except multiple choice."""

from collections.abc import Iterator
from typing import Any

from llm_jax.core.checks import given
from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Arguments, Field, Nonlinearity, Pair, Table, tying
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings, labels
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.bert import bert
from llm_jax.models.families.encoder import masked_lm_head, sequence_head, span_head
from llm_jax.models.heads import ClassHead, TiedHead

_CLASSES = {
    "sequence": "DistilBertForSequenceClassification",
    "token": "DistilBertForTokenClassification",
    "span": "DistilBertForQuestionAnswering",
}
_MASKED = "DistilBertForMaskedLM"


def _read_head(settings: Settings, found: Arguments) -> Arguments:
    makers = {
        _MASKED: lambda: masked_lm_head(found["activation"]),
        _CLASSES["sequence"]: lambda: sequence_head(settings.classes, "relu"),
        _CLASSES["token"]: lambda: ClassHead(settings.classes),
        _CLASSES["span"]: span_head,
    }
    head = given(settings.head(makers, default=_MASKED), "all classes of the family have a head")
    return {"head": head, "tied": settings.given("tie_word_embeddings", default=True)}


def _write_head(config: TransformerConfig) -> dict[str, Any]:
    head = config.head
    if not isinstance(head, ClassHead):
        return {"architectures": [_MASKED], "tie_word_embeddings": isinstance(head, TiedHead)}
    return {"architectures": [_CLASSES[head.of]]} | labels(head.classes)


_FIELDS: Table = (
    # `sinusoidal_pos_embds` only sets initial values, which the weights replace.
    Field("n_layers", "layers"),
    Field("n_heads", "heads"),
    Field("dim", "width"),
    Field("hidden_dim", "hidden"),
    Field("vocab_size", "vocab_size"),
    Field("max_position_embeddings", "max_length", 512),
    Nonlinearity("activation"),
    Pair(_read_head, _write_head),
)


def _distilbert(**given: Any) -> TransformerConfig:
    """A BERT without token types."""
    return bert(types=0, **given)


def _tensors(config: TransformerConfig) -> Iterator[Tensor]:
    name = "distilbert.embeddings"
    yield from parts.embedding(config, f"{name}.word_embeddings.weight")
    yield from parts.learned_positions(config, f"{name}.position_embeddings.weight")
    yield from parts.norm(f"{name}.LayerNorm", config.embed.norm, "embed/norm", config.width)
    for layer in parts.layers(config):
        name = f"distilbert.transformer.layer.{layer.number}"
        yield from parts.attention(layer, (f"{name}.attention.{part}_lin" for part in ("q", "k", "v", "out")))
        yield from parts.layer_norm(layer, f"{name}.sa_layer_norm", "mixer_stream_norm")
        yield from parts.ffn(layer, {"up": f"{name}.ffn.lin1"}, f"{name}.ffn.lin2")
        yield from parts.layer_norm(layer, f"{name}.output_layer_norm", "ffn_stream_norm")
    yield from _head_tensors(config)


def _head_tensors(config: TransformerConfig) -> Iterator[Tensor]:
    head = config.head
    if isinstance(head, ClassHead):
        yield from parts.transform(config, "pre_classifier")
        yield from parts.dense(
            "qa_outputs" if head.of == "span" else "classifier", "head", config.width, head.classes, True
        )
        return
    yield from parts.transform(config, "vocab_transform", "vocab_layer_norm")
    yield from parts.head(config, "vocab_projector")


FAMILIES = (
    Family(
        "distilbert",
        _MASKED,
        tying(_distilbert),
        _FIELDS,
        _tensors,
        prefix="distilbert.",
        copies={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
        unread=(r"embeddings\.position_ids$",),
    ),
)

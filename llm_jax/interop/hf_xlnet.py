"""Checkpoints of XLNet, with the heads of its classes except XLNetForQuestionAnswering, which uses beam search."""

from collections.abc import Callable, Iterator
from typing import Any

from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Arguments, Field, Nonlinearity, Only, Pair, Table, constant, tying
from llm_jax.interop.mapping import Leaf, Tensor
from llm_jax.interop.settings import Settings, labels
from llm_jax.layers.attention.relative import RelativeAttentionConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.encoder import span_head
from llm_jax.models.families.xlnet import last_head, xlnet
from llm_jax.models.heads import AnyHead, ClassHead, HeadConfig

_CLASSES = {
    "sequence": "XLNetForSequenceClassification",
    "token": "XLNetForTokenClassification",
    "span": "XLNetForQuestionAnsweringSimple",
}
_TOKENS = "XLNetLMHeadModel"


def _head(settings: Settings) -> AnyHead | None:
    def row() -> AnyHead:
        for option, supported in (("summary_type", "last"), ("summary_use_proj", True), ("summary_activation", "tanh")):
            settings.only(option, supported, default=supported)
        return last_head(settings.classes)

    heads = {"sequence": row, "token": lambda: ClassHead(settings.classes), "span": span_head}
    makers: dict[str, Callable[[], AnyHead | None]] = {_CLASSES[of]: head for of, head in heads.items()}
    return settings.head({**makers, _TOKENS: lambda: None}, default=_TOKENS)


def _write_head(config: TransformerConfig) -> dict[str, Any]:
    head = config.head
    if not isinstance(head, ClassHead):
        return {"architectures": [_TOKENS]}
    return {"architectures": [_CLASSES[head.of]]} | labels(head.classes)


def _read_farthest(settings: Settings, found: Arguments) -> Arguments:
    farthest = settings.given("clamp_len", default=-1)
    return {"farthest": farthest if farthest > 0 else None}


def _mixer(config: TransformerConfig) -> RelativeAttentionConfig:
    return parts.mixer_of(parts.first(config), RelativeAttentionConfig)


_FIELDS: Table = (
    # The memory options (mem_len, reuse_len, use_mems_eval) have no effect without preceding sequences.
    constant(mem_len=None),
    Only("attn_type", "bi"),
    Only("bi_data", False),
    Only("untie_r", True),
    Field("n_layer", "layers"),
    Field("n_head", "heads", held=lambda config: _mixer(config).heads),
    Field("d_model", "width"),
    Field("vocab_size", "vocab_size"),
    Field("d_inner", "hidden"),
    Nonlinearity("ff_activation"),
    Field("layer_norm_eps", "epsilon", 1e-12),
    Pair(_read_farthest, lambda config: {"clamp_len": _mixer(config).farthest or -1}),
    Pair(lambda settings, found: {"head": _head(settings)}, _write_head),
    Field("tie_word_embeddings", "tied", True, lambda config: not isinstance(config.head, HeadConfig)),
)


def _tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "transformer.word_embedding.weight")
    yield Tensor("transformer.mask_emb", "1 1 d", (Leaf("embed/target", "d"),), {"d": config.width})
    for layer in parts.layers(config):
        name, mixer = f"transformer.layer.{layer.number}", parts.mixer_of(layer.block, RelativeAttentionConfig)
        layer = layer.with_sizes(n=mixer.heads, h=mixer.head_dim, r=2)
        yield from parts.layer_norm(layer, f"{name}.rel_attn.layer_norm", "mixer_stream_norm")
        # These tensors are not linear layers in transformers.
        for theirs, ours, layout in (
            ("q", "query/kernel", "d n h"),
            ("k", "key/kernel", "d n h"),
            ("v", "value/kernel", "d n h"),
            ("r", "distance/kernel", "d n h"),
            ("o", "out/kernel", "n h d"),
            ("r_w_bias", "by_content/bias", "n h"),
            ("r_r_bias", "by_distance/bias", "n h"),
            ("r_s_bias", "by_part/bias", "n h"),
            ("seg_embed", "parts", "r n h"),
        ):
            stored = "d n h" if theirs == "o" else layout
            leaf = layer.leaf(f"mixer/{ours}", layout)
            yield Tensor(f"{name}.rel_attn.{theirs}", stored, (leaf,), layer.sizes)
        yield from parts.ffn(layer, {"up": f"{name}.ff.layer_1"}, f"{name}.ff.layer_2")
        yield from parts.layer_norm(layer, f"{name}.ff.layer_norm", "ffn_stream_norm")
    yield from _head_tensors(config)


def _head_tensors(config: TransformerConfig) -> Iterator[Tensor]:
    head = config.head
    if not isinstance(head, ClassHead):
        yield from parts.head(config, "lm_loss")
        return
    yield from parts.transform(config, "sequence_summary.summary")
    scores = {"token": "classifier", "span": "qa_outputs", "sequence": "logits_proj"}[head.of]
    yield from parts.dense(scores, "head", config.width, head.classes, head.bias)


FAMILIES = (
    Family(
        "xlnet",
        _TOKENS,
        tying(xlnet),
        _FIELDS,
        _tensors,
        prefix="transformer.",
        copies={"lm_loss.weight": "transformer.word_embedding.weight"},
    ),
)

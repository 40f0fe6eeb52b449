"""Checkpoints of OPT."""

from collections.abc import Iterator

from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Field, Nonlinearity, Only, Pair, Table, tying
from llm_jax.interop.mapping import Tensor
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.opt import opt

_FIELDS: Table = (
    Only("_remove_final_layer_norm", False),
    Only("layer_norm_elementwise_affine", True),
    Field("num_hidden_layers", "layers"),
    Field("num_attention_heads", "heads"),
    Field("hidden_size", "width"),
    Field("vocab_size", "vocab_size"),
    Field("max_position_embeddings", "max_length", 2048),
    Field("ffn_dim", "hidden"),
    Nonlinearity("activation_function", "relu"),
    Field("enable_bias", "bias", True),
    Field("word_embed_proj_dim", "embed_width", None),
    Pair(
        lambda settings, found: {"post_norm": not settings.given("do_layer_norm_before", default=True)},
        lambda config: {"do_layer_norm_before": config.final_norm is not None},
    ),
    Field("tie_word_embeddings", "tied", True),
)


def _tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "model.decoder.embed_tokens.weight")
    yield from parts.widening(config, "model.decoder.project_in")
    yield from parts.transform(config, "model.decoder.project_out")
    yield from parts.learned_positions(config, "model.decoder.embed_positions.weight")
    before = config.final_norm is not None
    norms = ("mixer_norm", "ffn_norm") if before else ("mixer_stream_norm", "ffn_stream_norm")
    for layer in parts.layers(config):
        name = f"model.decoder.layers.{layer.number}"
        projections = (f"{name}.self_attn.{part}_proj" for part in ("q", "k", "v", "out"))
        yield from parts.layer_norm(layer, f"{name}.self_attn_layer_norm", norms[0])
        yield from parts.attention(layer, projections)
        yield from parts.layer_norm(layer, f"{name}.final_layer_norm", norms[1])
        yield from parts.ffn(layer, {"up": f"{name}.fc1"}, f"{name}.fc2")
    if before:
        yield from parts.norm("model.decoder.final_layer_norm", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


FAMILIES = (
    Family(
        "opt",
        "OPTForCausalLM",
        tying(opt),
        _FIELDS,
        _tensors,
        prefix="model.",
        counts_tokens=lambda config: True,
        copies={"lm_head.weight": "model.decoder.embed_tokens.weight"},
    ),
)

"""OPT's checkpoints."""

from collections.abc import Iterator
from typing import Any

from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings, activation_name
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.opt import opt
from llm_jax.models.heads import TiedHead


def _read(settings: Settings) -> TransformerConfig:
    settings.only("_remove_final_layer_norm", False, default=False)
    settings.only("layer_norm_elementwise_affine", True, default=True)
    config = opt(
        settings.need("num_hidden_layers"),
        settings.need("num_attention_heads"),
        settings.need("hidden_size"),
        vocab_size=settings.need("vocab_size"),
        max_length=settings.given("max_position_embeddings", default=2048),
        hidden=settings.need("ffn_dim"),
        activation=settings.activation("activation_function", default="relu"),
        bias=settings.given("enable_bias", default=True),
        embed_width=settings.given("word_embed_proj_dim"),
        post_norm=not settings.given("do_layer_norm_before", default=True),
    )
    return parts.with_tied(config, settings.given("tie_word_embeddings", default=True))


def _write(config: TransformerConfig) -> dict[str, Any]:
    block = parts.first(config)
    mixer = parts.attention_of(block)
    ffn = parts.dense_of(block)
    return {
        "num_hidden_layers": config.depth,
        "num_attention_heads": mixer.heads,
        "hidden_size": config.width,
        "word_embed_proj_dim": config.embed.table_width(config.width),
        "do_layer_norm_before": config.final_norm is not None,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length,
        "ffn_dim": ffn.hidden,
        "activation_function": activation_name(ffn.activation),
        "enable_bias": mixer.bias,
        "tie_word_embeddings": isinstance(config.head, TiedHead),
    }


def _tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "model.decoder.embed_tokens.weight")
    yield from parts.widening(config, "model.decoder.project_in")
    yield from parts.transform(config, "model.decoder.project_out")
    yield from parts.learned_positions(config, "model.decoder.embed_positions.weight")
    before = config.final_norm is not None
    norms = ("mixer_norm", "ffn_norm") if before else ("mixer_stream_norm", "ffn_stream_norm")
    for place in parts.places(config):
        name = f"model.decoder.layers.{place.number}"
        projections = (f"{name}.self_attn.{part}_proj" for part in ("q", "k", "v", "out"))
        yield from parts.layer_norm(place, f"{name}.self_attn_layer_norm", norms[0])
        yield from parts.attention(place, projections)
        yield from parts.layer_norm(place, f"{name}.final_layer_norm", norms[1])
        yield from parts.ffn(place, {"up": f"{name}.fc1"}, f"{name}.fc2")
    if before:
        yield from parts.norm("model.decoder.final_layer_norm", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


FAMILIES = (
    Family(
        "opt",
        "OPTForCausalLM",
        _read,
        _write,
        _tensors,
        prefix="model.",
        counts_tokens=lambda config: True,
        copies={"lm_head.weight": "model.decoder.embed_tokens.weight"},
    ),
)

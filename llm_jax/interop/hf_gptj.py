"""GPT-J's checkpoints: features that are rotated together are neighbours."""

from collections.abc import Iterator
from typing import Any

from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings, activation_name
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.gptj import gptj
from llm_jax.models.heads import TiedHead


def _read(settings: Settings) -> TransformerConfig:
    heads, width = settings.need("n_head"), settings.need("n_embd")
    config = gptj(
        settings.need("n_layer"),
        heads,
        width,
        rotated=settings.stated("rotary_dim", default=64) or width // heads,
        vocab_size=settings.need("vocab_size"),
        max_length=settings.given("n_positions", default=2048),
        hidden=settings.given("n_inner"),
        activation=settings.activation("activation_function", default="gelu_new"),
        epsilon=settings.given("layer_norm_epsilon", default=1e-5),
    )
    return parts.with_tied(config, settings.given("tie_word_embeddings", default=False))


def _write(config: TransformerConfig) -> dict[str, Any]:
    block = parts.first(config)
    mixer = parts.attention_of(block)
    ffn = parts.dense_of(block)
    return {
        "n_layer": config.depth,
        "n_head": mixer.heads,
        "n_embd": config.width,
        "rotary_dim": _rotated(mixer),
        "vocab_size": config.vocab_size,
        "n_positions": config.max_length,
        "n_inner": ffn.hidden,
        "activation_function": activation_name(ffn.activation),
        "layer_norm_epsilon": parts.norm_of(block).epsilon,
        "tie_word_embeddings": isinstance(config.head, TiedHead),
    }


def _tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "transformer.wte.weight")
    for place in parts.places(config):
        name = f"transformer.h.{place.number}"
        projections = (f"{name}.attn.{part}_proj" for part in ("q", "k", "v", "out"))
        yield from parts.layer_norm(place, f"{name}.ln_1", "mixer_norm")
        yield from parts.attention(place, projections, neighbours=_rotated(parts.attention_of(place.block)))
        yield from parts.ffn(place, {"up": f"{name}.mlp.fc_in"}, f"{name}.mlp.fc_out")
    yield from parts.norm("transformer.ln_f", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


def _rotated(mixer: AttentionConfig) -> int:
    return parts.rope_of(mixer).features or mixer.head_dim


FAMILIES = (
    Family(
        "gptj",
        "GPTJForCausalLM",
        _read,
        _write,
        _tensors,
        prefix="transformer.",
        copies={"lm_head.weight": "transformer.wte.weight"},
        unread=(r"\.attn\.(masked_)?bias$", r"\.attn\.embed_positions$"),
    ),
)

"""GPT-NeoX's and Pythia's checkpoints: queries, keys and values of a head lie together."""

from collections.abc import Iterator
from typing import Any

from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.rope import longest, read_partial_rope, write_partial_rope, written_length
from llm_jax.interop.settings import Settings, activation_name
from llm_jax.models.block import Parallel
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.gpt_neox import gpt_neox
from llm_jax.models.heads import TiedHead


def _read(settings: Settings) -> TransformerConfig:
    heads, width = settings.need("num_attention_heads"), settings.need("hidden_size")
    length = settings.given("max_position_embeddings", default=2048)
    rope = read_partial_rope(settings, width // heads, length, share=0.25)
    return gpt_neox(
        settings.need("num_hidden_layers"),
        heads,
        width,
        vocab_size=settings.need("vocab_size"),
        max_length=longest(rope, length),
        rope=rope,
        hidden=settings.need("intermediate_size"),
        activation=settings.activation("hidden_act"),
        epsilon=settings.given("layer_norm_eps", default=1e-5),
        parallel=settings.given("use_parallel_residual", default=True),
        bias=settings.given("attention_bias", default=True),
        tied=settings.given("tie_word_embeddings", default=False),
    )


def _write(config: TransformerConfig) -> dict[str, Any]:
    block = parts.first(config)
    mixer = parts.attention_of(block)
    ffn = parts.dense_of(block)
    rope = write_partial_rope(parts.rope_of(mixer), mixer.head_dim)
    return rope | {
        "num_hidden_layers": config.depth,
        "num_attention_heads": mixer.heads,
        "hidden_size": config.width,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": written_length(parts.rope_of(mixer), config.max_length),
        "rotary_pct": rope["partial_rotary_factor"],
        "rotary_emb_base": rope["rope_theta"],
        "intermediate_size": ffn.hidden,
        "hidden_act": activation_name(ffn.activation),
        "layer_norm_eps": parts.norm_of(block).epsilon,
        "use_parallel_residual": isinstance(block.wiring, Parallel),
        "attention_bias": mixer.bias,
        "tie_word_embeddings": isinstance(config.head, TiedHead),
    }


def _tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "gpt_neox.embed_in.weight")
    for place in parts.places(config):
        name = f"gpt_neox.layers.{place.number}"
        yield from parts.layer_norm(place, f"{name}.input_layernorm", "mixer_norm")
        yield from parts.fused_attention(place, f"{name}.attention.query_key_value", "(n s h) d", "d (s n) h")
        yield from parts.attention_out(place, f"{name}.attention.dense")
        yield from parts.layer_norm(place, f"{name}.post_attention_layernorm", "ffn_norm")
        yield from parts.ffn(place, {"up": f"{name}.mlp.dense_h_to_4h"}, f"{name}.mlp.dense_4h_to_h")
    yield from parts.norm("gpt_neox.final_layer_norm", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "embed_out")


FAMILIES = (
    Family(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        _read,
        _write,
        _tensors,
        prefix="gpt_neox.",
        copies={"embed_out.weight": "gpt_neox.embed_in.weight"},
        unread=(r"\.attention\.(masked_)?bias$", r"rotary_emb\.inv_freq$"),
    ),
)

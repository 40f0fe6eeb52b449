"""Checkpoints of StarCoder (`gpt_bigcode`) and StarCoder 2."""

from collections.abc import Iterator
from typing import Any

from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.rope import longest, read_rope, write_rope, written_length
from llm_jax.interop.settings import Settings, activation_name
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.starcoder import starcoder, starcoder2
from llm_jax.models.heads import TiedHead


def _read_1(settings: Settings) -> TransformerConfig:
    settings.only("scale_attn_weights", True, default=True)
    settings.only("add_cross_attention", False, default=False)
    heads = settings.need("n_head")
    return starcoder(
        settings.need("n_layer"),
        heads,
        settings.need("n_embd"),
        kv_heads=1 if settings.given("multi_query", default=True) else heads,
        vocab_size=settings.need("vocab_size"),
        max_length=settings.given("n_positions", default=1024),
        hidden=settings.given("n_inner"),
        activation=settings.activation("activation_function", default="gelu_pytorch_tanh"),
        epsilon=settings.given("layer_norm_epsilon", default=1e-5),
        tied=settings.given("tie_word_embeddings", default=True),
    )


def _write_1(config: TransformerConfig) -> dict[str, Any]:
    block = parts.first(config)
    mixer = parts.attention_of(block)
    ffn = parts.dense_of(block)
    return {
        "n_layer": config.depth,
        "n_head": mixer.heads,
        "n_embd": config.width,
        "multi_query": mixer.kv_heads == 1,
        "vocab_size": config.vocab_size,
        "n_positions": config.max_length,
        "n_inner": ffn.hidden,
        "activation_function": activation_name(ffn.activation),
        "layer_norm_epsilon": parts.norm_of(block).epsilon,
        "tie_word_embeddings": isinstance(config.head, TiedHead),
    }


def _tensors_1(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "transformer.wte.weight")
    yield from parts.learned_positions(config, "transformer.wpe.weight")
    for place in parts.places(config):
        name, mixer = f"transformer.h.{place.number}", parts.attention_of(place.block)
        yield from parts.layer_norm(place, f"{name}.ln_1", "mixer_norm")
        if mixer.kv_heads == 1:
            shares = (mixer.heads, 1, 1)
            yield from parts.fused_attention(place, f"{name}.attn.c_attn", "(s h) d", "d s h", shares)
        else:
            yield from parts.fused_attention(place, f"{name}.attn.c_attn", "(n s h) d", "d (n s) h")
        yield from parts.attention_out(place, f"{name}.attn.c_proj")
        yield from parts.layer_norm(place, f"{name}.ln_2", "ffn_norm")
        yield from parts.ffn(place, {"up": f"{name}.mlp.c_fc"}, f"{name}.mlp.c_proj")
    yield from parts.norm("transformer.ln_f", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


def _read_2(settings: Settings) -> TransformerConfig:
    heads, width = settings.need("num_attention_heads"), settings.need("hidden_size")
    length = settings.need("max_position_embeddings")
    rope = read_rope(settings, width // heads, length)
    return starcoder2(
        settings.need("num_hidden_layers"),
        heads,
        width,
        kv_heads=settings.given("num_key_value_heads", default=2),
        hidden=settings.need("intermediate_size"),
        vocab_size=settings.need("vocab_size"),
        max_length=longest(rope, length),
        rope=rope,
        window=settings.stated("sliding_window", default=None),
        activation=settings.activation("hidden_act", default="gelu_pytorch_tanh"),
        epsilon=settings.given("norm_epsilon", default=1e-5),
        bias=settings.given("use_bias", default=True),
        tied=settings.given("tie_word_embeddings", default=True),
    )


def _write_2(config: TransformerConfig) -> dict[str, Any]:
    block = parts.first(config)
    mixer = parts.attention_of(block)
    ffn = parts.dense_of(block)
    return write_rope(parts.rope_of(mixer)) | {
        "num_hidden_layers": config.depth,
        "num_attention_heads": mixer.heads,
        "num_key_value_heads": mixer.kv_heads,
        "hidden_size": config.width,
        "intermediate_size": ffn.hidden,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": written_length(parts.rope_of(mixer), config.max_length),
        "sliding_window": parts.window_of(mixer),
        "hidden_act": activation_name(ffn.activation),
        "norm_epsilon": parts.norm_of(block).epsilon,
        "use_bias": mixer.bias,
        "tie_word_embeddings": isinstance(config.head, TiedHead),
    }


def _tensors_2(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "model.embed_tokens.weight")
    for place in parts.places(config):
        name = f"model.layers.{place.number}"
        yield from parts.layer_norm(place, f"{name}.input_layernorm", "mixer_norm")
        yield from parts.attention(place, (f"{name}.self_attn.{part}_proj" for part in "qkvo"))
        yield from parts.layer_norm(place, f"{name}.post_attention_layernorm", "ffn_norm")
        yield from parts.ffn(place, {"up": f"{name}.mlp.c_fc"}, f"{name}.mlp.c_proj")
    yield from parts.norm("model.norm", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


FAMILIES = (
    Family(
        "gpt_bigcode",
        "GPTBigCodeForCausalLM",
        _read_1,
        _write_1,
        _tensors_1,
        prefix="transformer.",
        copies={"lm_head.weight": "transformer.wte.weight"},
        unread=(r"\.attn\.(masked_)?bias$",),
    ),
    Family("starcoder2", "Starcoder2ForCausalLM", _read_2, _write_2, _tensors_2, prefix="model."),
)

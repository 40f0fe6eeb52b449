"""Checkpoints of StarCoder (`gpt_bigcode`) and StarCoder 2."""

from collections.abc import Iterator

from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Field, Nonlinearity, Only, Pair, Rope, Table
from llm_jax.interop.mapping import Tensor
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.starcoder import starcoder, starcoder2

_STARCODER: Table = (
    Only("scale_attn_weights", True),
    Only("add_cross_attention", False),
    Field("n_layer", "layers"),
    Field("n_head", "heads"),
    Field("n_embd", "width"),
    Pair(
        lambda settings, found: {"kv_heads": 1 if settings.given("multi_query", default=True) else found["heads"]},
        lambda config: {"multi_query": parts.attention_of(parts.first(config)).kv_heads == 1},
    ),
    Field("vocab_size", "vocab_size"),
    Field("n_positions", "max_length", 1024),
    Field("n_inner", "hidden", None),
    Nonlinearity("activation_function", "gelu_pytorch_tanh"),
    Field("layer_norm_epsilon", "epsilon", 1e-5),
    Field("tie_word_embeddings", "tied", True),
)


def _tensors_1(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "transformer.wte.weight")
    yield from parts.learned_positions(config, "transformer.wpe.weight")
    for layer in parts.layers(config):
        name, mixer = f"transformer.h.{layer.number}", parts.attention_of(layer.block)
        yield from parts.layer_norm(layer, f"{name}.ln_1", "mixer_norm")
        if mixer.kv_heads == 1:
            shares = (mixer.heads, 1, 1)
            yield from parts.fused_attention(layer, f"{name}.attn.c_attn", "(s h) d", "d s h", shares)
        else:
            yield from parts.fused_attention(layer, f"{name}.attn.c_attn", "(n s h) d", "d (n s) h")
        yield from parts.attention_out(layer, f"{name}.attn.c_proj")
        yield from parts.layer_norm(layer, f"{name}.ln_2", "ffn_norm")
        yield from parts.ffn(layer, {"up": f"{name}.mlp.c_fc"}, f"{name}.mlp.c_proj")
    yield from parts.norm("transformer.ln_f", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


_STARCODER2: Table = (
    Field("num_hidden_layers", "layers"),
    Field("num_attention_heads", "heads"),
    Field("num_key_value_heads", "kv_heads", 2),
    Field("hidden_size", "width"),
    Field("intermediate_size", "hidden"),
    Field("vocab_size", "vocab_size"),
    Rope(),
    Field("sliding_window", "window", None),
    Nonlinearity("hidden_act", "gelu_pytorch_tanh"),
    Field("norm_epsilon", "epsilon", 1e-5),
    Field("use_bias", "bias", True),
    Field("tie_word_embeddings", "tied", True),
)


def _tensors_2(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "model.embed_tokens.weight")
    for layer in parts.layers(config):
        name = f"model.layers.{layer.number}"
        yield from parts.layer_norm(layer, f"{name}.input_layernorm", "mixer_norm")
        yield from parts.attention(layer, (f"{name}.self_attn.{part}_proj" for part in "qkvo"))
        yield from parts.layer_norm(layer, f"{name}.post_attention_layernorm", "ffn_norm")
        yield from parts.ffn(layer, {"up": f"{name}.mlp.c_fc"}, f"{name}.mlp.c_proj")
    yield from parts.norm("model.norm", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


FAMILIES = (
    Family(
        "gpt_bigcode",
        "GPTBigCodeForCausalLM",
        starcoder,
        _STARCODER,
        _tensors_1,
        prefix="transformer.",
        copies={"lm_head.weight": "transformer.wte.weight"},
        unread=(r"\.attn\.(masked_)?bias$",),
    ),
    Family("starcoder2", "Starcoder2ForCausalLM", starcoder2, _STARCODER2, _tensors_2, prefix="model."),
)

"""Checkpoints of Phi-1.5 and Phi-2."""

from collections.abc import Iterator

from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Field, Nonlinearity, Only, Rope, Table, tying
from llm_jax.interop.mapping import Tensor
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.phi import phi

_FIELDS: Table = (
    Only("qk_layernorm", False),
    Field("num_hidden_layers", "layers"),
    Field("num_attention_heads", "heads"),
    Field("num_key_value_heads", "kv_heads", lambda found: found["heads"]),
    Field("hidden_size", "width"),
    Field("head_dim", "head_dim", lambda found: found["width"] // found["heads"]),
    Field("intermediate_size", "hidden"),
    Field("vocab_size", "vocab_size"),
    Rope(default=2048, share=0.5),
    Nonlinearity("hidden_act", "gelu_new"),
    Field("layer_norm_eps", "epsilon", 1e-5),
    Field("tie_word_embeddings", "tied", False),
)


def _tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "model.embed_tokens.weight")
    for layer in parts.layers(config):
        name = f"model.layers.{layer.number}"
        projections = (f"{name}.self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "dense"))
        yield from parts.layer_norm(layer, f"{name}.input_layernorm", "mixer_norm")
        yield from parts.attention(layer, projections)
        yield from parts.ffn(layer, {"up": f"{name}.mlp.fc1"}, f"{name}.mlp.fc2")
    yield from parts.norm("model.final_layernorm", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


FAMILIES = (Family("phi", "PhiForCausalLM", tying(phi), _FIELDS, _tensors, prefix="model."),)

"""Checkpoints of GPT-NeoX and Pythia: one tensor holds queries, keys and values, grouped by head."""

from collections.abc import Iterator
from typing import Any

from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Field, Nonlinearity, Pair, Rope, Table
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.rope_options import write_partial_rope
from llm_jax.models.block import Parallel
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.gpt_neox import gpt_neox


def _write_old_names(config: TransformerConfig) -> dict[str, Any]:
    """The options of RoPE in older files."""
    mixer = parts.attention_of(parts.first(config))
    rope = write_partial_rope(parts.rope_of(mixer), mixer.head_dim)
    return {"rotary_pct": rope["partial_rotary_factor"], "rotary_emb_base": rope["rope_theta"]}


_FIELDS: Table = (
    Field("num_hidden_layers", "layers"),
    Field("num_attention_heads", "heads"),
    Field("hidden_size", "width"),
    Field("vocab_size", "vocab_size"),
    Rope(default=2048, share=0.25),
    Pair(write=_write_old_names),
    Field("intermediate_size", "hidden"),
    Nonlinearity("hidden_act"),
    Field("layer_norm_eps", "epsilon", 1e-5),
    Field(
        *("use_parallel_residual", "parallel", True),
        held=lambda config: isinstance(parts.first(config).wiring, Parallel),
    ),
    Field("attention_bias", "bias", True),
    Field("tie_word_embeddings", "tied", False),
)


def _tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "gpt_neox.embed_in.weight")
    for layer in parts.layers(config):
        name = f"gpt_neox.layers.{layer.number}"
        yield from parts.layer_norm(layer, f"{name}.input_layernorm", "mixer_norm")
        yield from parts.fused_attention(layer, f"{name}.attention.query_key_value", "(n s h) d", "d (s n) h")
        yield from parts.attention_out(layer, f"{name}.attention.dense")
        yield from parts.layer_norm(layer, f"{name}.post_attention_layernorm", "ffn_norm")
        yield from parts.ffn(layer, {"up": f"{name}.mlp.dense_h_to_4h"}, f"{name}.mlp.dense_4h_to_h")
    yield from parts.norm("gpt_neox.final_layer_norm", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "embed_out")


FAMILIES = (
    Family(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        gpt_neox,
        _FIELDS,
        _tensors,
        prefix="gpt_neox.",
        copies={"embed_out.weight": "gpt_neox.embed_in.weight"},
        unread=(r"\.attention\.(masked_)?bias$", r"rotary_emb\.inv_freq$"),
    ),
)

"""Checkpoints of DBRX: the matrices of all experts of a layer lie in one tensor, one below the other.

The published file has `rope_theta` in `attn_config`, where transformers 5 does not look; both places are read and
written, and the one at which it looks comes first.
"""

from collections.abc import Iterator
from typing import Any

from llm_jax.interop import experts, parts
from llm_jax.interop.family import Family
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.rope import longest, read_rope, write_rope, written_length
from llm_jax.interop.settings import Settings
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.dbrx import dbrx


def _read(settings: Settings) -> TransformerConfig:
    attention, ffn = (settings.nested(name) for name in ("attn_config", "ffn_config"))
    heads, width, length = settings.need("n_heads"), settings.need("d_model"), settings.need("max_seq_len")
    settings.only("tie_word_embeddings", False, default=False)
    ffn.only("ffn_act_fn", {"name": "silu"}, default={"name": "silu"})
    # Null leaves the weights as they are; another power than 1 is refused.
    normalized = ffn.stated("moe_normalize_expert_weights", 1) is not None
    ffn.only("moe_normalize_expert_weights", 1, default=1)
    rope = read_rope(settings, width // heads, length, attention.given("rope_theta", default=10_000.0))
    config = dbrx(
        settings.need("n_layers"),
        heads,
        width,
        hidden=ffn.given("ffn_hidden_size", default=3584),
        kv_heads=attention.given("kv_n_heads", default=1),
        vocab_size=settings.need("vocab_size"),
        max_length=longest(rope, length),
        rope=rope,
        clip=attention.given("clip_qkv"),
        experts=ffn.given("moe_num_experts", default=4),
        top=ffn.given("moe_top_k", default=1),
        normalized=normalized,
    )
    return experts.balanced(config, ffn.given("moe_loss_weight", default=0.01))


def _write(config: TransformerConfig) -> dict[str, Any]:
    mixer, layer = parts.attention_of(parts.first(config)), parts.expert_layer(config)
    rope = parts.rope_of(mixer)
    attention = {"kv_n_heads": mixer.kv_heads, "clip_qkv": mixer.clip, "rope_theta": rope.base}
    ffn = {
        "ffn_act_fn": {"name": "silu"},
        "ffn_hidden_size": layer.expert.hidden,
        "moe_num_experts": layer.count,
        "moe_top_k": parts.router_of(layer).top,
        "moe_loss_weight": experts.load_coefficient(config),
        "moe_normalize_expert_weights": 1.0 if parts.router_of(layer).normalized else None,
    }
    return write_rope(rope) | {
        "n_layers": config.depth,
        "n_heads": mixer.heads,
        "d_model": config.width,
        "max_seq_len": written_length(rope, config.max_length),
        "vocab_size": config.vocab_size,
        "attn_config": attention,
        "ffn_config": ffn,
        "tie_word_embeddings": False,
    }


def _tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "transformer.wte.weight")
    for place in parts.places(config):
        name, mixer = f"transformer.blocks.{place.number}", parts.attention_of(place.block)
        norms = f"{name}.norm_attn_norm"
        yield from parts.layer_norm(place, f"{norms}.norm_1", "mixer_norm")
        shares = (mixer.heads, mixer.kv_heads, mixer.kv_heads)
        yield from parts.fused_attention(place, f"{norms}.attn.Wqkv", "(s h) d", "d s h", shares)
        yield from parts.attention_out(place, f"{norms}.attn.out_proj")
        yield from parts.layer_norm(place, f"{norms}.norm_2", "ffn_norm")
        yield from experts.router(place, f"{name}.ffn.router.layer")
        for theirs, ours, layout in (("w1", "gate", "x d f"), ("v1", "up", "x d f"), ("w2", "down", "x f d")):
            leaf = place.leaf(f"ffn/experts/{ours}/kernel", layout)
            yield Tensor(f"{name}.ffn.experts.mlp.{theirs}", "(x f) d", (leaf,), place.sizes)
    yield from parts.norm("transformer.norm_f", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


FAMILIES = (Family("dbrx", "DbrxForCausalLM", _read, _write, _tensors, prefix="transformer."),)

"""GPT-J's checkpoints: features that are rotated together are neighbours."""

from collections.abc import Iterator

from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Field, Nonlinearity, Pair, Table, tying
from llm_jax.interop.mapping import Tensor
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.gptj import gptj

_FIELDS: Table = (
    Field("n_layer", "layers"),
    Field("n_head", "heads"),
    Field("n_embd", "width"),
    Pair(
        lambda settings, found: {
            "rotated": settings.stated("rotary_dim", default=64) or found["width"] // found["heads"]
        },
        lambda config: {"rotary_dim": parts.rotated(parts.attention_of(parts.first(config)))},
    ),
    Field("vocab_size", "vocab_size"),
    Field("n_positions", "max_length", 2048),
    Field("n_inner", "hidden", None),
    Nonlinearity("activation_function", "gelu_new"),
    Field("layer_norm_epsilon", "epsilon", 1e-5),
    Field("tie_word_embeddings", "tied", False),
)


def _tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "transformer.wte.weight")
    for place in parts.places(config):
        name = f"transformer.h.{place.number}"
        projections = (f"{name}.attn.{part}_proj" for part in ("q", "k", "v", "out"))
        yield from parts.layer_norm(place, f"{name}.ln_1", "mixer_norm")
        yield from parts.attention(place, projections, neighbours=parts.rotated(parts.attention_of(place.block)))
        yield from parts.ffn(place, {"up": f"{name}.mlp.fc_in"}, f"{name}.mlp.fc_out")
    yield from parts.norm("transformer.ln_f", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


FAMILIES = (
    Family(
        "gptj",
        "GPTJForCausalLM",
        tying(gptj),
        _FIELDS,
        _tensors,
        prefix="transformer.",
        copies={"lm_head.weight": "transformer.wte.weight"},
        unread=(r"\.attn\.(masked_)?bias$", r"\.attn\.embed_positions$"),
    ),
)

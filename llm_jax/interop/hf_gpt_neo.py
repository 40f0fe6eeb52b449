"""Checkpoints of GPT-Neo."""

from collections.abc import Iterator
from typing import Any

from llm_jax.core.checks import check
from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Arguments, Field, Nonlinearity, Pair, Table, tying
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.gpt_neo import gpt_neo


def _read_windows(settings: Settings, found: Arguments) -> Arguments:
    """The window of each layer, from `attention_types`: a list of [kinds of consecutive layers, number of repeats]."""
    layers, window = found["layers"], settings.given("window_size", default=256)
    groups = settings.given("attention_types", default=[[["global", "local"], 12]])
    kinds = [kind for kinds, times in groups for _ in range(times) for kind in kinds]
    check(
        len(kinds) == layers,
        f"config.json has attention_types for {len(kinds)} layers and num_layers = {layers}: they must be equal",
    )
    unknown = sorted(set(kinds) - {"global", "local"})
    check(not unknown, f"config.json has attention_types {unknown}: supported are global and local")
    return {"windows": tuple(window if kind == "local" else None for kind in kinds)}


def _write_windows(config: TransformerConfig) -> dict[str, Any]:
    windows = parts.windows(config)
    kinds = ["global" if window is None else "local" for window in windows]
    return {
        "attention_types": [[kinds, 1]],
        "attention_layers": kinds,
        "window_size": next((window for window in windows if window is not None), 256),
    }


_FIELDS: Table = (
    Field("num_layers", "layers"),
    Field("num_heads", "heads"),
    Field("hidden_size", "width"),
    Field("intermediate_size", "hidden", None),
    Field("vocab_size", "vocab_size"),
    Field("max_position_embeddings", "max_length", 2048),
    Pair(_read_windows, _write_windows),
    Nonlinearity("activation_function", "gelu_new"),
    Field("layer_norm_epsilon", "epsilon", 1e-5),
    Field("tie_word_embeddings", "tied", True),
)


def _tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "transformer.wte.weight")
    yield from parts.learned_positions(config, "transformer.wpe.weight")
    for layer in parts.layers(config):
        name = f"transformer.h.{layer.number}"
        projections = (f"{name}.attn.attention.{part}_proj" for part in ("q", "k", "v", "out"))
        yield from parts.layer_norm(layer, f"{name}.ln_1", "mixer_norm")
        yield from parts.attention(layer, projections)
        yield from parts.layer_norm(layer, f"{name}.ln_2", "ffn_norm")
        yield from parts.ffn(layer, {"up": f"{name}.mlp.c_fc"}, f"{name}.mlp.c_proj")
    yield from parts.norm("transformer.ln_f", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


FAMILIES = (
    Family(
        "gpt_neo",
        "GPTNeoForCausalLM",
        tying(gpt_neo),
        _FIELDS,
        _tensors,
        prefix="transformer.",
        copies={"lm_head.weight": "transformer.wte.weight"},
        unread=(r"\.attn\.attention\.(masked_)?bias$",),
    ),
)

"""Checkpoints of RecurrentGemma."""

from collections.abc import Iterator
from typing import Any

from llm_jax.core.checks import check
from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Arguments, Field, Nonlinearity, Only, Pair, Table, tying
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.rope_options import read_partial_rope, write_partial_rope
from llm_jax.interop.settings import Settings
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.positions.rope_scaling import Unscaled
from llm_jax.layers.recurrent.rg_lru import RGLRUConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.recurrent_gemma import PATTERN, recurrent_gemma


def _kind(block: BlockConfig) -> str:
    """The name of a block's mixer. ValueError for a mixer that the family does not have."""
    if isinstance(block.mixer, RGLRUConfig):
        return "recurrent"
    parts.attention_of(block)
    return "attention"


def _half(size: int) -> int:
    """Width of the ffn: the option counts the features of gate and up together."""
    check(size % 2 == 0, f"config.json has intermediate_size = {size}: it must be even, since it counts gate and up")
    return size // 2


def _first(config: TransformerConfig, kind: type) -> BlockConfig:
    """The first block with a mixer of this type. ValueError without one: its sizes are then unknown."""
    found = [layer.block for layer in parts.layers(config) if isinstance(layer.block.mixer, kind)]
    check(bool(found), f"no layer has the mixer {kind.__name__}: this family requires one")
    return found[0]


def _attention(config: TransformerConfig) -> AttentionConfig:
    return parts.attention_of(_first(config, AttentionConfig))


def _recurrence(config: TransformerConfig) -> RGLRUConfig:
    return parts.mixer_of(_first(config, RGLRUConfig), RGLRUConfig)


def _read_rope(settings: Settings, found: Arguments) -> Arguments:
    length = settings.given("max_position_embeddings", default=8192)
    rope = read_partial_rope(settings, found["width"] // found["heads"], length, share=0.5)
    check(
        isinstance(rope.scaling, Unscaled),
        f"config.json has {type(rope.scaling).__name__}: RecurrentGemma has no RoPE scaling; remove the option",
    )
    return {"rope": rope, "max_length": length}


def _write_rope(config: TransformerConfig) -> dict[str, Any]:
    mixer = _attention(config)
    rope = parts.rope_of(mixer)
    check(
        isinstance(rope.scaling, Unscaled), f"RoPE has {type(rope.scaling).__name__}: RecurrentGemma requires Unscaled"
    )
    return write_partial_rope(rope, mixer.head_dim) | {"max_position_embeddings": config.max_length}


def _read_pattern(settings: Settings, found: Arguments) -> Arguments:
    # Older files name this option `_block_types`.
    return {"pattern": tuple(settings.given("block_types", "_block_types", default=PATTERN))}


_FIELDS: Table = (
    Field("num_hidden_layers", "layers"),
    Field("num_attention_heads", "heads", held=lambda config: _attention(config).heads),
    Field("hidden_size", "width"),
    Only("head_dim", lambda found: found["width"] // found["heads"]),
    Pair(_read_pattern, lambda config: {"block_types": [_kind(layer.block) for layer in parts.layers(config)]}),
    Pair(_read_rope, _write_rope),
    Pair(
        lambda settings, found: {"hidden": _half(settings.need("intermediate_size"))},
        lambda config: {"intermediate_size": 2 * parts.dense_of(_first(config, AttentionConfig)).hidden},
    ),
    Field(
        *("num_key_value_heads", "kv_heads", lambda found: found["heads"]),
        held=lambda config: _attention(config).kv_heads,
    ),
    Field("lru_width", "channels", lambda found: found["width"], lambda config: _recurrence(config).channels),
    Field("vocab_size", "vocab_size"),
    Field("attention_window_size", "window", 2048, lambda config: parts.window_of(_attention(config))),
    Field("conv1d_width", "taps", 4, lambda config: _recurrence(config).convolution.taps),
    Field("logits_soft_cap", "softcap", 30.0, lambda config: parts.head_of(config).softcap),
    Nonlinearity("hidden_activation", "gelu_pytorch_tanh"),
    Field("rms_norm_eps", "epsilon", 1e-6),
    Field("attention_bias", "bias", False, lambda config: _attention(config).bias),
    Field("tie_word_embeddings", "tied", True),
)


def _tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "model.embed_tokens.weight")
    for layer in parts.layers(config):
        name = f"model.layers.{layer.number}"
        yield from parts.layer_norm(layer, f"{name}.temporal_pre_norm", "mixer_norm")
        if isinstance(layer.block.mixer, RGLRUConfig):
            yield from _recurrent(layer, f"{name}.temporal_block")
        else:
            yield from parts.attention(layer, (f"{name}.temporal_block.{part}_proj" for part in "qkvo"))
        yield from parts.layer_norm(layer, f"{name}.channel_pre_norm", "ffn_norm")
        into = {part: f"{name}.mlp_block.{part}_proj" for part in ("gate", "up")}
        yield from parts.ffn(layer, into, f"{name}.mlp_block.down_proj")
    yield from parts.norm("model.final_norm", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


def _recurrent(layer: parts.LayerRef, name: str) -> Iterator[Tensor]:
    """A recurrent block. Letters: r channels, w taps of the convolution, n blocks of the gates, i by j each."""
    mixer = parts.mixer_of(layer.block, RGLRUConfig)
    size = mixer.channels // mixer.blocks
    layer = layer.with_sizes(r=mixer.channels, w=mixer.convolution.taps, n=mixer.blocks, i=size, j=size)
    for theirs, ours in (("linear_y", "gate"), ("linear_x", "input")):
        yield from parts.linear(layer, f"{name}.{theirs}", "r d", "d", (layer.leaf(f"mixer/{ours}", "d r"),), True)
    yield from parts.linear(layer, f"{name}.linear_out", "d r", "r", (layer.leaf("mixer/out", "r d"),), True)
    vectors = {
        "conv_1d.weight": ("r 1 w", "convolution/kernel", "w r"),
        "conv_1d.bias": ("r", "convolution/bias", "r"),
        "rg_lru.recurrent_param": ("r", "decay", "r"),
    }
    for theirs, ours in (("input_gate", "input_gate"), ("recurrent_gate", "decay_gate")):
        vectors[f"rg_lru.{theirs}_weight"] = ("n i j", f"{ours}/kernel", "n i j")
        vectors[f"rg_lru.{theirs}_bias"] = ("n j", f"{ours}/bias", "n j")
    for theirs, (layout, ours, leaf_layout) in vectors.items():
        yield Tensor(f"{name}.{theirs}", layout, (layer.leaf(f"mixer/{ours}", leaf_layout),), layer.sizes)


FAMILIES = (
    Family("recurrent_gemma", "RecurrentGemmaForCausalLM", tying(recurrent_gemma), _FIELDS, _tensors, prefix="model."),
)

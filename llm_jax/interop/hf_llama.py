"""Checkpoints of LLaMA and of families with its tensors: Mistral, Qwen 2 and 3, Phi-3, OLMo 2."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

from llm_jax.core.checks import check
from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Arguments, Field, Nonlinearity, Pair, Rope, Table, defaults
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.rope_options import (
    KINDS,
    longest,
    read_partial_rope,
    write_partial_rope,
    write_rope,
    written_length,
)
from llm_jax.interop.settings import Settings, layer_types, layer_windows
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.positions.rope_scaling import LongRoPEScaling, Unscaled
from llm_jax.models.config import ModelConfig, TransformerConfig
from llm_jax.models.families.llama import llama
from llm_jax.models.families.olmo2 import olmo2
from llm_jax.models.families.qwen import qwen2, qwen3

SILU = Nonlinearity("hidden_act", "silu")
UNNORMED: Table = (
    Field("num_hidden_layers", "layers"),
    Field("num_attention_heads", "heads"),
    Field("num_key_value_heads", "kv_heads", lambda found: found["heads"]),
    Field("hidden_size", "width"),
    Field("head_dim", "head_dim", lambda found: found["width"] // found["heads"]),
    Field("intermediate_size", "hidden"),
    Field("vocab_size", "vocab_size"),
    SILU,
)
UNROTATED: Table = (
    *UNNORMED,
    Field("rms_norm_eps", "epsilon", 1e-6),
    Field("tie_word_embeddings", "tied", False),
)
"""The options that LLaMA and its derivatives share, except positions."""
DECODER: Table = (*UNROTATED, Rope())
BIAS = Field("attention_bias", "bias", False)


def tensors(
    config: TransformerConfig,
    before: tuple[str, ...] = (),
    after: tuple[str, ...] = (),
    experts: Callable[[parts.LayerRef, str], Iterator[Tensor]] | None = None,
    ffn: Callable[[parts.LayerRef, str], Iterator[Tensor]] = parts.llama_ffn,
    neighbours: bool = False,
) -> Iterator[Tensor]:
    """The tensors with LLaMA's names.

    Args:
      before, after: names of the norms before and after mixer and ffn, if there are any; a shared norm is named once.
      experts: (layer, prefix of its names) -> tensors of an MoE layer.
      ffn: (layer, name of its ffn) -> tensors of a dense ffn.
      neighbours: whether RoPE rotates neighbouring features together.
    """
    yield from parts.embedding(config, "model.embed_tokens.weight")
    for layer in parts.layers(config):
        name = f"model.layers.{layer.number}"
        yield from _block_norms(layer, name, before, after)
        turned = parts.rotated(parts.attention_of(layer.block)) if neighbours else 0
        if parts.attention_of(layer.block).qk_norm:
            yield from parts.query_key_norms(layer, f"{name}.self_attn.q_norm", f"{name}.self_attn.k_norm", turned)
        yield from parts.attention(layer, (f"{name}.self_attn.{part}_proj" for part in "qkvo"), neighbours=turned)
        if experts is not None and isinstance(layer.block.ffn, MoEConfig):
            yield from experts(layer, name)
        else:
            yield from ffn(layer, f"{name}.mlp")
    yield from parts.norm("model.norm", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


def _block_norms(layer: parts.LayerRef, name: str, before: tuple[str, ...], after: tuple[str, ...]) -> Iterator[Tensor]:
    """Norms before and after mixer and ffn."""
    for names, ours in ((before, ("mixer_norm", "ffn_norm")), (after, ("mixer_out_norm", "ffn_out_norm"))):
        for theirs, own in zip(names, ours, strict=False):
            yield from parts.layer_norm(layer, f"{name}.{theirs}", own)


BEFORE = ("input_layernorm", "post_attention_layernorm")
PRE_NORM = functools.partial(tensors, before=BEFORE)
POST_NORM = functools.partial(tensors, after=("post_attention_layernorm", "post_feedforward_layernorm"))


def _read_windows(settings: Settings, found: Arguments) -> Arguments:
    """The window of each layer of a Qwen: from `layer_types`, or only in layers from `max_window_layers` on."""
    layers, window = found["layers"], settings.given("sliding_window", default=4096)
    if not settings.given("use_sliding_window", default=False):
        return {"window": (None,) * layers}
    full = min(settings.given("max_window_layers", default=28), layers)
    kinds = ["full_attention"] * full + ["sliding_attention"] * (layers - full)
    return {"window": layer_windows(settings.given("layer_types", default=kinds), layers, window)}


def write_windows(config: TransformerConfig) -> dict[str, Any]:
    """The options of the windows of a Qwen's layers."""
    windows = parts.windows(config)
    used = [window for window in windows if window is not None]
    return {
        "use_sliding_window": bool(used),
        "sliding_window": used[0] if used else None,
        "layer_types": layer_types(windows),
    }


def write_ropes(config: TransformerConfig) -> dict[str, Any]:
    """The options that `read_ropes_by_kind` reads."""
    ropes = {}
    for layer in parts.layers(config):
        mixer = parts.attention_of(layer.block)
        ropes.setdefault(KINDS[parts.window_of(mixer) is not None], parts.rope_of(mixer))
    written = {kind: write_rope(rope)["rope_parameters"] for kind, rope in ropes.items()}
    return {"rope_parameters": written, "max_position_embeddings": config.max_length}


def _read_phi3_rope(settings: Settings, found: Arguments) -> Arguments:
    # transformers reads this length only from the top level of the file.
    original = settings.given("original_max_position_embeddings", default=4096)
    length, settings = settings.need("max_position_embeddings"), settings.with_option(_ORIGINAL, original)
    rope = read_partial_rope(settings, found["head_dim"], length)
    check(
        isinstance(rope.scaling, Unscaled | LongRoPEScaling),
        f"config.json scales rotations by {type(rope.scaling).__name__}: Phi-3 has LongRoPE only",
    )
    return {"rope": rope, "max_length": longest(rope, length)}


_ORIGINAL = "original_max_position_embeddings"


def _write_phi3_rope(config: TransformerConfig) -> dict[str, Any]:
    mixer = parts.attention_of(parts.first(config))
    rope = parts.rope_of(mixer)
    length = written_length(dataclasses.replace(rope, features=None), config.max_length)
    original = rope.scaling.original_length if isinstance(rope.scaling, LongRoPEScaling) else config.max_length
    return write_partial_rope(rope, mixer.head_dim) | {"max_position_embeddings": length, _ORIGINAL: original}


def fused_ffn(
    layer: parts.LayerRef, name: str, into: str = "gate_up_proj", down: str = "down_proj"
) -> Iterator[Tensor]:
    """An ffn with gate and up in one matrix."""
    halves, bias = (
        (layer.leaf("ffn/gate", "d (s f)"), layer.leaf("ffn/up", "d (s f)")),
        parts.dense_of(layer.block).bias,
    )
    yield from parts.linear(layer, f"{name}.{into}", "(s f) d", "d", halves, bias)
    yield from parts.ffn(layer, {}, f"{name}.{down}")


def _fused_tensors(config: TransformerConfig) -> Iterator[Tensor]:
    """Phi-3's tensors: LLaMA's, but queries, keys and values are one matrix, and gate and up another."""
    for tensor in PRE_NORM(config, ffn=fused_ffn):
        if not any(part in tensor.name for part in ("q_proj", "k_proj", "v_proj")):
            yield tensor
    for layer in parts.layers(config):
        name, mixer = f"model.layers.{layer.number}", parts.attention_of(layer.block)
        shares = (mixer.heads, mixer.kv_heads, mixer.kv_heads)
        yield from parts.fused_attention(layer, f"{name}.self_attn.qkv_proj", "(s h) d", "d s h", shares)


def _family(
    kind: str, architecture: str, fields: Table, build: Callable[..., ModelConfig] = llama, tensors: Any = PRE_NORM
) -> Family:
    return Family(kind, architecture, build, fields, tensors, prefix="model.", unread=(r"rotary_emb\.inv_freq$",))


FAMILIES = (
    _family("llama", "LlamaForCausalLM", (*DECODER, BIAS, Field("mlp_bias", "ffn_bias", False))),
    _family(
        "mistral",
        "MistralForCausalLM",
        (*defaults(DECODER, kv_heads=8), Field("sliding_window", "window", 4096, null=True)),
    ),
    _family(
        "qwen2",
        "Qwen2ForCausalLM",
        (*defaults(DECODER, kv_heads=32), Pair(_read_windows, write_windows)),
        qwen2,
    ),
    _family(
        "qwen3",
        "Qwen3ForCausalLM",
        (*defaults(DECODER, kv_heads=32, head_dim=128), BIAS, Pair(_read_windows, write_windows)),
        qwen3,
    ),
    _family(
        "phi3",
        "Phi3ForCausalLM",
        (
            *defaults(UNROTATED, epsilon=1e-5),
            Pair(_read_phi3_rope, _write_phi3_rope),
            Field("sliding_window", "window", None),
        ),
        tensors=_fused_tensors,
    ),
    _family("olmo2", "Olmo2ForCausalLM", (*defaults(DECODER, epsilon=1e-5), BIAS), olmo2, POST_NORM),
)

"""Checkpoints of LLaMA and of the families that keep its tensors: Mistral, Qwen 2 and 3, Phi-3, OLMo 2."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

from llm_jax.core.checks import check
from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.rope import longest, read_partial_rope, read_rope, write_partial_rope, write_rope, written_length
from llm_jax.interop.settings import Settings, activation_name, layer_types, layer_windows
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.positions.rope import RoPEConfig
from llm_jax.layers.positions.rope_scaling import LongRoPEScaling, Unscaled
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.llama import llama
from llm_jax.models.families.olmo2 import olmo2
from llm_jax.models.families.qwen import qwen2, qwen3
from llm_jax.models.heads import TiedHead


def read_decoder(
    settings: Settings,
    build: Callable[..., TransformerConfig] = llama,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    epsilon: float = 1e-6,
    rope: RoPEConfig | None = None,
    **of_family: Any,
) -> TransformerConfig:
    """What all of them have in common.

    Args:
      build: the family's function; what follows the width of a head is left to `of_family`.
      kv_heads, head_dim, epsilon: where the file names none; None: as many as heads, the width over the heads.
      rope: None: the whole head is rotated, as the file says.
    """
    heads, width = settings.need("num_attention_heads"), settings.need("hidden_size")
    size: int = settings.given("head_dim", default=head_dim or width // heads)
    length = settings.need("max_position_embeddings")
    rope = read_rope(settings, size, length) if rope is None else rope
    config = build(
        settings.need("num_hidden_layers"),
        heads,
        width,
        hidden=settings.need("intermediate_size"),
        kv_heads=settings.given("num_key_value_heads", default=kv_heads or heads),
        vocab_size=settings.need("vocab_size"),
        max_length=longest(rope, length),
        rope=rope,
        epsilon=settings.given("rms_norm_eps", default=epsilon),
        tied=settings.given("tie_word_embeddings", default=False),
        head_dim=size,
        **of_family,
    )
    activation = settings.activation("hidden_act", default="silu")
    return config if activation == "silu" else parts.with_activation(config, activation)


def _head_dim(settings: Settings) -> int:
    return settings.given("head_dim", default=settings.need("hidden_size") // settings.need("num_attention_heads"))


def write_decoder(config: TransformerConfig, rope: RoPEConfig | None = None) -> dict[str, Any]:
    """What all of them have in common; `rope` None means that of the first block."""
    block, ffn = parts.first(config), parts.plain_ffn(config)
    mixer, rope = parts.attention_of(block), rope or parts.rope_of(parts.attention_of(block))
    return write_rope(rope) | {
        "num_hidden_layers": config.depth,
        "num_attention_heads": mixer.heads,
        "num_key_value_heads": mixer.kv_heads,
        "head_dim": mixer.head_dim,
        "hidden_size": config.width,
        "intermediate_size": ffn.hidden,
        "hidden_act": activation_name(ffn.activation),
        "vocab_size": config.vocab_size,
        "max_position_embeddings": written_length(rope, config.max_length),
        "rms_norm_eps": parts.norm_of(block).epsilon,
        "tie_word_embeddings": isinstance(config.head, TiedHead),
    }


def tensors(
    config: TransformerConfig,
    before: tuple[str, str] | None = None,
    after: tuple[str, str] | None = None,
    experts: Callable[[parts.Place, str], Iterator[Tensor]] | None = None,
) -> Iterator[Tensor]:
    """The tensors under LLaMA's names.

    Args:
      before, after: names of the norms before and after the halves of a block, where there are any.
      experts: (layer, start of its names) -> tensors of its experts, where it has such.
    """
    yield from parts.embedding(config, "model.embed_tokens.weight")
    for place in parts.places(config):
        name = f"model.layers.{place.number}"
        yield from _block_norms(place, name, before, after)
        if parts.attention_of(place.block).qk_norm:
            yield from parts.query_key_norms(place, f"{name}.self_attn.q_norm", f"{name}.self_attn.k_norm")
        yield from parts.attention(place, (f"{name}.self_attn.{part}_proj" for part in "qkvo"))
        if experts is not None and isinstance(place.block.ffn, MoEConfig):
            yield from experts(place, name)
        else:
            yield from parts.llama_ffn(place, f"{name}.mlp")
    yield from parts.norm("model.norm", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


def _block_norms(
    place: parts.Place, name: str, before: tuple[str, str] | None, after: tuple[str, str] | None
) -> Iterator[Tensor]:
    """Norms before and after mixer and ffn."""
    for names, ours in ((before, ("mixer_norm", "ffn_norm")), (after, ("mixer_out_norm", "ffn_out_norm"))):
        for theirs, own in zip(names or (), ours, strict=False):
            yield from parts.layer_norm(place, f"{name}.{theirs}", own)


BEFORE = ("input_layernorm", "post_attention_layernorm")
PRE_NORM = functools.partial(tensors, before=BEFORE)


def _read_llama(settings: Settings) -> TransformerConfig:
    bias = settings.given("attention_bias", default=False)
    return read_decoder(settings, bias=bias, ffn_bias=settings.given("mlp_bias", default=False))


def _write_llama(config: TransformerConfig) -> dict[str, Any]:
    block = parts.first(config)
    return write_decoder(config) | {
        "attention_bias": parts.attention_of(block).bias,
        "mlp_bias": parts.dense_of(block).bias,
    }


def _read_mistral(settings: Settings) -> TransformerConfig:
    return read_decoder(settings, kv_heads=8, window=settings.stated("sliding_window", default=4096))


def _write_mistral(config: TransformerConfig) -> dict[str, Any]:
    return write_decoder(config) | {"sliding_window": parts.window_of(parts.attention_of(parts.first(config)))}


def _windows(settings: Settings) -> tuple[int | None, ...]:
    """Tokens that each layer of a Qwen sees: by `layer_types`, or the layers from `max_window_layers` on."""
    layers, window = settings.need("num_hidden_layers"), settings.given("sliding_window", default=4096)
    if not settings.given("use_sliding_window", default=False):
        return (None,) * layers
    full = min(settings.given("max_window_layers", default=28), layers)
    kinds = ["full_attention"] * full + ["sliding_attention"] * (layers - full)
    return layer_windows(settings.given("layer_types", default=kinds), layers, window)


def write_windows(config: TransformerConfig) -> dict[str, Any]:
    """The options from which Qwen reads how many tokens each layer sees."""
    windows = [parts.window_of(parts.attention_of(place.block)) for place in parts.places(config)]
    used = [window for window in windows if window is not None]
    return {
        "use_sliding_window": bool(used),
        "sliding_window": used[0] if used else None,
        "layer_types": layer_types(windows),
    }


def _read_qwen2(settings: Settings) -> TransformerConfig:
    return read_decoder(settings, qwen2, kv_heads=32, window=_windows(settings))


def _read_qwen3(settings: Settings) -> TransformerConfig:
    bias = settings.given("attention_bias", default=False)
    return read_decoder(settings, qwen3, kv_heads=32, head_dim=128, bias=bias, window=_windows(settings))


def _write_qwen(config: TransformerConfig) -> dict[str, Any]:
    return (
        write_decoder(config) | write_windows(config) | {"attention_bias": parts.attention_of(parts.first(config)).bias}
    )


def _read_phi3(settings: Settings) -> TransformerConfig:
    # transformers takes this length from the top of the file only.
    original = settings.given("original_max_position_embeddings", default=4096)
    length, head_dim = settings.need("max_position_embeddings"), _head_dim(settings)
    rope = read_partial_rope(settings.with_option("original_max_position_embeddings", original), head_dim, length)
    check(
        isinstance(rope.scaling, Unscaled | LongRoPEScaling),
        f"config.json scales rotations by {type(rope.scaling).__name__}: Phi-3 has LongRoPE only",
    )
    return read_decoder(settings, epsilon=1e-5, rope=rope, window=settings.given("sliding_window"))


def _write_phi3(config: TransformerConfig) -> dict[str, Any]:
    mixer = parts.attention_of(parts.first(config))
    rope = write_partial_rope(parts.rope_of(mixer), mixer.head_dim)
    whole = dataclasses.replace(parts.rope_of(mixer), features=None)
    scaling = whole.scaling
    original = scaling.original_length if isinstance(scaling, LongRoPEScaling) else config.max_length
    return (
        write_decoder(config, whole)
        | rope
        | {"sliding_window": parts.window_of(mixer), "original_max_position_embeddings": original}
    )


def _fused_tensors(config: TransformerConfig) -> Iterator[Tensor]:
    """Phi-3's: LLaMA's with queries, keys and values one matrix, gate and up another."""
    for tensor in PRE_NORM(config):
        if not any(part in tensor.name for part in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")):
            yield tensor
    for place in parts.places(config):
        name, mixer = f"model.layers.{place.number}", parts.attention_of(place.block)
        shares = (mixer.heads, mixer.kv_heads, mixer.kv_heads)
        yield from parts.fused_attention(place, f"{name}.self_attn.qkv_proj", "(s h) d", "d s h", shares)
        halves = (place.leaf("ffn/gate", "d (s f)"), place.leaf("ffn/up", "d (s f)"))
        yield from parts.linear(
            place, f"{name}.mlp.gate_up_proj", "(s f) d", "d", halves, parts.dense_of(place.block).bias
        )


def _read_olmo2(settings: Settings) -> TransformerConfig:
    return read_decoder(settings, olmo2, epsilon=1e-5, bias=settings.given("attention_bias", default=False))


def _write_olmo2(config: TransformerConfig) -> dict[str, Any]:
    return write_decoder(config) | {"attention_bias": parts.attention_of(parts.first(config)).bias}


_OLMO2 = functools.partial(tensors, after=("post_attention_layernorm", "post_feedforward_layernorm"))


def _family(kind: str, architecture: str, read: Any, write: Any, tensors: Any) -> Family:
    return Family(kind, architecture, read, write, tensors, prefix="model.", unread=(r"rotary_emb\.inv_freq$",))


FAMILIES = (
    _family("llama", "LlamaForCausalLM", _read_llama, _write_llama, PRE_NORM),
    _family("mistral", "MistralForCausalLM", _read_mistral, _write_mistral, PRE_NORM),
    _family("qwen2", "Qwen2ForCausalLM", _read_qwen2, _write_qwen, PRE_NORM),
    _family("qwen3", "Qwen3ForCausalLM", _read_qwen3, _write_qwen, PRE_NORM),
    _family("phi3", "Phi3ForCausalLM", _read_phi3, _write_phi3, _fused_tensors),
    _family("olmo2", "Olmo2ForCausalLM", _read_olmo2, _write_olmo2, _OLMO2),
)

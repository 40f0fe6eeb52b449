"""Checkpoints of Mamba-2.

Letters beyond those of mapping.py: c channels of the convolution, w its taps, i features of all heads.
"""

import math
from collections.abc import Iterator
from typing import Any

from llm_jax.core.checks import check
from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings
from llm_jax.layers.recurrent.convolution import ConvolutionConfig
from llm_jax.layers.recurrent.mamba2 import Mamba2Config
from llm_jax.layers.recurrent.matrix_recurrence import ChunkwiseForm
from llm_jax.models.config import TiedHead, TransformerConfig
from llm_jax.models.families.mamba2 import mamba2

_LONGEST = 2**20
"""Tokens of a row where the file names no number, as it need not for a recurrence."""

_CHUNK = 256


def _read(settings: Settings) -> TransformerConfig:
    settings.only("hidden_act", "silu", default="silu")
    heads, head_dim = settings.given("num_heads", default=128), settings.given("head_dim", default=64)
    width, expand = settings.need("hidden_size"), settings.given("expand", default=2)
    check(
        int(expand * width) == heads * head_dim,
        f"config.json has expand {expand} of hidden_size {width} and num_heads {heads} of head_dim {head_dim}: "
        "transformers takes them only where they are as many features",
    )
    limits = tuple(map(_number, settings.given("time_step_limit", default=(0.0, math.inf))))
    check(len(limits) == 2, f"config.json has time_step_limit = {list(limits)}: it must be the least and the largest")
    return mamba2(
        settings.given("num_hidden_layers", default=64),
        width,
        vocab_size=settings.need("vocab_size"),
        max_length=settings.given("max_position_embeddings", default=_LONGEST),
        heads=heads,
        head_dim=head_dim,
        groups=settings.given("n_groups", default=8),
        state_size=settings.given("state_size", default=128),
        convolution=ConvolutionConfig(
            settings.given("conv_kernel", default=4), settings.given("use_conv_bias", default=True)
        ),
        bias=settings.given("use_bias", default=False),
        epsilon=settings.given("layer_norm_epsilon", default=1e-5),
        step_limit=(limits[0], limits[1]),
        tied=settings.given("tie_word_embeddings", default=False),
        form=ChunkwiseForm(settings.given("chunk_size", default=_CHUNK)),
    )


def _number(value: float | dict[str, str]) -> float:
    """A number as transformers writes it: {"__float__": "Infinity"} for one that JSON has no word for."""
    return float(value["__float__"] if isinstance(value, dict) else value)


def _write(config: TransformerConfig) -> dict[str, Any]:
    block = parts.first(config)
    mixer = parts.mixer_of(block, Mamba2Config)
    expand, rest = divmod(mixer.features, config.width)
    check(rest == 0, f"the mixer has {mixer.features} features: config.json can only say a multiple of {config.width}")
    return {
        "num_hidden_layers": config.depth,
        "hidden_size": config.width,
        "vocab_size": config.vocab_size,
        # It bounds nothing there, as it bounds nothing in the recurrence.
        "max_position_embeddings": config.max_length,
        "expand": expand,
        "num_heads": mixer.heads,
        "head_dim": mixer.head_dim,
        "n_groups": mixer.groups,
        "state_size": mixer.state_size,
        "conv_kernel": mixer.convolution.taps,
        "use_conv_bias": mixer.convolution.bias,
        "use_bias": mixer.bias,
        # It changes the order of sums and nothing else.
        "chunk_size": mixer.form.chunk if isinstance(mixer.form, ChunkwiseForm) else _CHUNK,
        "layer_norm_epsilon": parts.norm_of(block).epsilon,
        "tie_word_embeddings": isinstance(config.head, TiedHead),
        "time_step_limit": [{"__float__": "Infinity"} if math.isinf(limit) else limit for limit in mixer.step_limit],
    }


def _tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "backbone.embeddings.weight")
    for place in parts.places(config):
        name, mixer = f"backbone.layers.{place.number}", parts.mixer_of(place.block, Mamba2Config)
        place = place.with_sizes(n=mixer.heads, i=mixer.features, c=mixer.channels, w=mixer.convolution.taps)
        yield from parts.layer_norm(place, f"{name}.norm", "mixer_norm")
        yield from _mixer(place, f"{name}.mixer")
    yield from parts.norm("backbone.norm_f", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


def _mixer(place: parts.Place, name: str) -> Iterator[Tensor]:
    mixer = parts.mixer_of(place.block, Mamba2Config)
    inputs = tuple(place.leaf(f"mixer/{ours}", "d s", size) for ours, (size, _) in mixer.projections.items())
    yield from parts.linear(place, f"{name}.in_proj", "s d", "d", inputs, mixer.bias)
    vectors = {"A_log": ("n", "log_rate"), "D": ("n", "skip"), "dt_bias": ("n", "step_bias")}
    vectors |= {"norm.weight": ("i", "norm/scale")}
    if mixer.convolution.bias:
        vectors |= {"conv1d.bias": ("c", "convolution/bias")}
    for theirs, (letter, ours) in vectors.items():
        yield Tensor(f"{name}.{theirs}", letter, (place.leaf(f"mixer/{ours}", letter),), place.sizes)
    kernel = place.leaf("mixer/convolution/kernel", "w c")
    yield Tensor(f"{name}.conv1d.weight", "c 1 w", (kernel,), place.sizes)
    yield from parts.linear(place, f"{name}.out_proj", "d i", "i", (place.leaf("mixer/out", "i d"),), mixer.bias)


FAMILIES = (
    Family(
        "mamba2",
        "Mamba2ForCausalLM",
        _read,
        _write,
        _tensors,
        prefix="backbone.",
        copies={"lm_head.weight": "backbone.embeddings.weight"},
    ),
)

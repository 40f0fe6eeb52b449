"""Checkpoints of Mamba-2.

Legend, in addition to that of mapping.py: c channels of the convolution, w its taps, i features of all heads.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from llm_jax.core.checks import check
from llm_jax.interop import parts
from llm_jax.interop.family import Family
from llm_jax.interop.fields import Arguments, Field, Only, Pair, Table
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings
from llm_jax.layers.recurrent.mamba2 import Mamba2Config
from llm_jax.layers.recurrent.matrix_recurrence import ChunkwiseForm
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.mamba2 import CONVOLUTION, mamba2

_LONGEST = 2**20
"""Maximum sequence length if the file states none. A recurrence does not require one."""

CHUNK = 256
"""Tokens of a chunk where a file names no number."""


def _mixer(config: TransformerConfig) -> Mamba2Config:
    return parts.mixer_of(parts.first(config), Mamba2Config)


def _held(name: str) -> Callable[[TransformerConfig], Any]:
    return lambda config: getattr(_mixer(config), name)


def _read_expand(settings: Settings, found: Arguments) -> Arguments:
    width, heads, head_dim = (found[name] for name in ("width", "heads", "head_dim"))
    expand = settings.given("expand", default=2)
    check(
        int(expand * width) == heads * head_dim,
        f"config.json has expand {expand}, hidden_size {width}, num_heads {heads} and head_dim {head_dim}: expand * "
        "hidden_size must equal num_heads * head_dim",
    )
    return {}


def _write_expand(config: TransformerConfig) -> dict[str, Any]:
    features = _held("features")(config)
    expand, rest = divmod(features, config.width)
    check(
        rest == 0,
        f"the mixer has {features} features: config.json can only express multiples of the width {config.width}",
    )
    return {"expand": expand}


def _read_convolution(settings: Settings, found: Arguments) -> Arguments:
    taps, bias = settings.given("conv_kernel", default=4), settings.given("use_conv_bias", default=True)
    return {"convolution": dataclasses.replace(CONVOLUTION, taps=taps, bias=bias)}


def _write_convolution(config: TransformerConfig) -> dict[str, Any]:
    convolution = _held("convolution")(config)
    return {"conv_kernel": convolution.taps, "use_conv_bias": convolution.bias}


def read_limits(settings: Settings, found: Arguments) -> Arguments:
    """The range of steps."""
    limits = tuple(map(_number, settings.given("time_step_limit", default=(0.0, math.inf))))
    check(
        len(limits) == 2,
        f"config.json has time_step_limit = {list(limits)}: two numbers are required, the minimum and the maximum",
    )
    return {"step_limit": limits}


def _number(value: float | dict[str, str]) -> float:
    """A number of a file. transformers writes infinity, which JSON lacks, as {"__float__": "Infinity"}."""
    return float(value["__float__"] if isinstance(value, dict) else value)


def write_limits(mixer: Mamba2Config) -> dict[str, Any]:
    """The options that `read_limits` reads."""
    limits = mixer.step_limit
    return {"time_step_limit": [{"__float__": "Infinity"} if math.isinf(limit) else limit for limit in limits]}


def chunk_of(mixer: Mamba2Config) -> int:
    """Tokens of a chunk of the recurrence: it changes the order of sums and nothing else."""
    return mixer.form.chunk if isinstance(mixer.form, ChunkwiseForm) else CHUNK


_FIELDS: Table = (
    Only("hidden_act", "silu"),
    Field("num_hidden_layers", "layers", 64),
    Field("hidden_size", "width"),
    Field("vocab_size", "vocab_size"),
    # transformers does not enforce it, and the recurrence does not require it.
    Field("max_position_embeddings", "max_length", _LONGEST),
    Field("num_heads", "heads", 128, _held("heads")),
    Field("head_dim", "head_dim", 64, _held("head_dim")),
    Pair(_read_expand, _write_expand),
    Field("n_groups", "groups", 8, _held("groups")),
    Field("state_size", "state_size", 128, _held("state_size")),
    Pair(_read_convolution, _write_convolution),
    Field("use_bias", "bias", False, _held("bias")),
    Field("layer_norm_epsilon", "epsilon", 1e-5),
    Pair(read_limits, lambda config: write_limits(_mixer(config))),
    Field("tie_word_embeddings", "tied", False),
    Pair(
        lambda settings, found: {"form": ChunkwiseForm(settings.given("chunk_size", default=CHUNK))},
        lambda config: {"chunk_size": chunk_of(_mixer(config))},
    ),
)


def _tensors(config: TransformerConfig) -> Iterator[Tensor]:
    yield from parts.embedding(config, "backbone.embeddings.weight")
    for layer in parts.layers(config):
        name = f"backbone.layers.{layer.number}"
        yield from parts.layer_norm(layer, f"{name}.norm", "mixer_norm")
        yield from mixer_tensors(layer, f"{name}.mixer")
    yield from parts.norm("backbone.norm_f", config.final_norm, "final_norm", config.width)
    yield from parts.head(config, "lm_head")


def mixer_tensors(layer: parts.LayerRef, name: str) -> Iterator[Tensor]:
    """The tensors of a mixer."""
    mixer = parts.mixer_of(layer.block, Mamba2Config)
    layer = layer.with_sizes(n=mixer.heads, i=mixer.features, c=mixer.channels, w=mixer.convolution.taps)
    inputs = tuple(layer.leaf(f"mixer/{ours}", "d s", size) for ours, (size, _) in mixer.projections.items())
    yield from parts.linear(layer, f"{name}.in_proj", "s d", "d", inputs, mixer.bias)
    vectors = {"A_log": ("n", "log_rate"), "D": ("n", "skip"), "dt_bias": ("n", "step_bias")}
    vectors |= {"norm.weight": ("i", "norm/scale")}
    if mixer.convolution.bias:
        vectors |= {"conv1d.bias": ("c", "convolution/bias")}
    for theirs, (letter, ours) in vectors.items():
        yield Tensor(f"{name}.{theirs}", letter, (layer.leaf(f"mixer/{ours}", letter),), layer.sizes)
    kernel = layer.leaf("mixer/convolution/kernel", "w c")
    yield Tensor(f"{name}.conv1d.weight", "c 1 w", (kernel,), layer.sizes)
    yield from parts.linear(layer, f"{name}.out_proj", "d i", "i", (layer.leaf("mixer/out", "i d"),), mixer.bias)


FAMILIES = (
    Family(
        "mamba2",
        "Mamba2ForCausalLM",
        mamba2,
        _FIELDS,
        _tensors,
        prefix="backbone.",
        copies={"lm_head.weight": "backbone.embeddings.weight"},
    ),
)

"""Sizes and costs of a model as text."""

import dataclasses
from typing import Any

from llm_jax.core.checks import check
from llm_jax.core.dtypes import MIXED
from llm_jax.layers.initialisers import Init
from llm_jax.models import count
from llm_jax.models.config import ModelConfig

_TRAINING_BYTES = 4 + 4 + 8
"""Bytes of a float32 parameter, its gradient, and AdamW's two moments."""


def summary(config: ModelConfig, length: int) -> dict[str, str]:
    """{fact: value} for sequences of `length` tokens, with encoder sequences of the same length if there is an encoder.
    Everything is computed from the config; nothing is allocated.

    Raises:
      ValueError: if the model does not support sequences of that length.
    """
    check(
        0 < length <= config.max_length,
        f"length is {length} and the model's max_length is {config.max_length}: it must be between 1 and max_length",
    )
    parameters = count.parameters(config)
    mixers = [block.mixer for stack in config.stacks for segment in stack.segments for block in segment.blocks]
    heads = sorted({mixer.shape for mixer in mixers})
    ahead = sum(map(count.multi_token_parameters, config.stacks))
    return {
        "layers": " + ".join(str(stack.depth) for stack in config.stacks),
        "width": f"{config.width:,}",
        "heads": "; ".join(heads),
        "vocabulary": f"{config.vocab_size:,}",
        "longest row": f"{config.max_length:,} tokens",
        "parameters": f"{parameters:,} ({short(parameters)})",
        **({"of them for multi-token prediction": f"{ahead:,} ({short(ahead)})"} if ahead else {}),
        "active parameters": _active(config, parameters - ahead),
        "forward FLOPs a token": f"{count.forward_flops(config, length):.3e} at {length:,} tokens",
        "training FLOPs a token": f"{count.training_flops(config, length):.3e}",
        "cache of a row": (
            f"{count.cache_bytes(config, length, MIXED) / 2**20:,.1f} MiB at {length:,} tokens, bfloat16"
            if config.stacks[-1].causal
            else "none: it is no decoder"
        ),
        "memory to train": (
            f"{parameters * _TRAINING_BYTES / 2**30:,.1f} GiB of float32 parameters, gradients and AdamW's moments, "
            "before activations"
        ),
    }


def initialisers(config: ModelConfig) -> dict[str, str]:
    """{path of config fields, such as 'mixer.out_init': distribution of the parameters}.
    Vectors that are not listed are initialised to zero, and the scales of norms to one."""
    found: dict[str, list[str]] = {}

    def visit(name: str, value: Any) -> None:
        if isinstance(value, Init):
            if value.formula not in found.setdefault(name, []):
                found[name].append(value.formula)
        elif isinstance(value, tuple):
            for item in value:
                visit(name, item)
        elif dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                # Paths leave out segments and blocks, because blocks are usually alike.
                inner = name if field.name in ("segments", "blocks") else f"{name}.{field.name}".lstrip(".")
                visit(inner, getattr(value, field.name))

    for stack in config.stacks:
        visit("", stack)
    return {name: " or ".join(words) for name, words in found.items()}


def _active(config: ModelConfig, parameters: int) -> str:
    """Number of active parameters per token of the `parameters` of the forward pass, as text."""
    active = round(count.active_parameters(config))
    if active == parameters:
        return f"{parameters:,} (dense: all)"
    return f"{active:,} ({short(active)}): but for the experts that a token does not visit"


def short(number: float) -> str:
    """124.4M, 1.5B: four significant digits at most."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:.0f}"

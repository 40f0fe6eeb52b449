"""The tensors of layers with experts: what a family file says of a router, of experts, of what all tokens share.

Published checkpoints hold every expert's matrices by themselves, or those of all experts of a layer as one tensor; the
letters are those of mapping.py.
"""

import dataclasses
from collections.abc import Iterator

from llm_jax.interop import parts
from llm_jax.interop.mapping import Tensor
from llm_jax.layers.ffn.balance import LoadLoss, ZLoss, mean_over
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import with_experts


def balanced(config: TransformerConfig, load: float, z: float = 0.0) -> TransformerConfig:
    """The model with the balance losses by which transformers would train it on.

    transformers takes the tokens of all layers together, and counts the K choices of a token without dividing by K: its
    loss is K times the mean over layers of LoadLoss with all choices, wherever layers choose alike, and then so are its
    gradients.

    Args:
      load, z: coefficients of the losses in a config.json.
    """
    layers = parts.mixed_layers(config)
    if not layers:
        return config
    ffn = parts.expert_layer(config)
    losses = mean_over(len(layers), LoadLoss(load * parts.router_of(ffn).top, first=False), ZLoss(z))
    return with_experts(config, dataclasses.replace(ffn, balance=losses), layers)


def load_coefficient(config: TransformerConfig) -> float:
    """That of `balanced`; 0 without such a loss. One of first choices alone is none, where there are others."""
    ffn = parts.expert_layer(config)
    top = parts.router_of(ffn).top
    weights = [one.weight for one in ffn.balance if isinstance(one, LoadLoss) and (not one.first or top == 1)]
    return _whole(config, sum(weights) / top)


def z_coefficient(config: TransformerConfig) -> float:
    """That of `balanced`; 0 without such a loss."""
    return _whole(config, sum(one.weight for one in parts.expert_layer(config).balance if isinstance(one, ZLoss)))


def _whole(config: TransformerConfig, weight: float) -> float:
    """Of the mean over layers, without the last digit that a division and a product may change."""
    return float(f"{weight * len(parts.mixed_layers(config)):.12g}")


def router(layer: parts.LayerRef, name: str, bias: bool = False) -> Iterator[Tensor]:
    """The matrix that scores experts, [expert, input]."""
    yield from parts.linear(layer, name, "x d", "d", (layer.leaf("ffn/router/scores", "d x"),), bias)


def each(layer: parts.LayerRef, name: str, into: dict[str, str], down: str) -> Iterator[Tensor]:
    """The experts one by one.

    Args:
      name: start of their names, up to their numbers.
      into, down: as of `parts.ffn`, what follows the number.
    """
    config = parts.experts_of(layer.block)
    for number in range(config.count):
        one = f"{name}{number}"
        theirs = {ours: f"{one}.{part}" for ours, part in into.items()}
        yield from parts.ffn(layer, theirs, f"{one}.{down}", path="ffn/experts", config=config.expert, expert=number)


LLAMA = {"gate": "gate_proj", "up": "up_proj"}, "down_proj"
"""What follows an expert's number where its matrices have LLaMA's names."""


def shared(layer: parts.LayerRef, name: str, gate: str | None = None) -> Iterator[Tensor]:
    """The expert for all tokens under LLaMA's names, and its gate."""
    yield from parts.llama_ffn(layer, name, path="ffn/shared", config=parts.experts_of(layer.block).shared)
    if gate is not None:
        yield from parts.linear(layer.with_sizes(e=1), gate, "e d", "d", (layer.leaf("ffn/shared_gate", "d e"),), False)

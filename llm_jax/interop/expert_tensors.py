"""Tensors of MoE layers: router, experts, shared expert; and the coefficients of their balance losses.

A published checkpoint holds one tensor per expert, or one tensor for all experts of a layer. Letters of axes are those
of mapping.py.
"""

import dataclasses
from collections.abc import Iterator

from llm_jax.interop import parts
from llm_jax.interop.mapping import Tensor
from llm_jax.layers.ffn.balance import LoadLoss, ZLoss, mean_over
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import with_experts


def balanced(config: TransformerConfig, load: float, z: float = 0.0) -> TransformerConfig:
    """The model with the balance losses that transformers computes in training.

    transformers takes the tokens of all layers together and counts the K choices of a token without dividing by K. Its
    loss and its gradients equal K times the mean over layers of LoadLoss with all choices, if all layers have the same
    choices.

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
    """The `load` of `balanced`; 0 without such a loss. A loss of first choices counts only if there is one choice."""
    ffn = parts.expert_layer(config)
    top = parts.router_of(ffn).top
    weights = [one.weight for one in ffn.balance if isinstance(one, LoadLoss) and (not one.first or top == 1)]
    return _whole(config, sum(weights) / top)


def z_coefficient(config: TransformerConfig) -> float:
    """The `z` of `balanced`; 0 without such a loss."""
    return _whole(config, sum(one.weight for one in parts.expert_layer(config).balance if isinstance(one, ZLoss)))


def _whole(config: TransformerConfig, weight: float) -> float:
    """The coefficient of the mean over layers, to 12 digits: a division and a product may change the last digit."""
    return float(f"{weight * len(parts.mixed_layers(config)):.12g}")


def router(layer: parts.LayerRef, name: str, bias: bool = False) -> Iterator[Tensor]:
    """The router's weight, [expert, input], and its bias if there is one."""
    yield from parts.linear(layer, name, "x d", "d", (layer.leaf("ffn/router/scores", "d x"),), bias)


def each(layer: parts.LayerRef, name: str, into: dict[str, str], down: str) -> Iterator[Tensor]:
    """The experts of a layer, with tensors of their own.

    Args:
      name: prefix of their names, before the expert's number.
      into, down: as in `parts.ffn`, the names after the number.
    """
    config = parts.experts_of(layer.block)
    for number in range(config.count):
        one = f"{name}{number}"
        theirs = {ours: f"{one}.{part}" for ours, part in into.items()}
        yield from parts.ffn(layer, theirs, f"{one}.{down}", path="ffn/experts", config=config.expert, expert=number)


LLAMA = {"gate": "gate_proj", "up": "up_proj"}, "down_proj"
"""`into` and `down` of `each`, with LLaMA's names."""


def shared(layer: parts.LayerRef, name: str, gate: str | None = None) -> Iterator[Tensor]:
    """The shared expert with LLaMA's names, and its gate."""
    yield from parts.llama_ffn(layer, name, path="ffn/shared", config=parts.experts_of(layer.block).shared)
    if gate is not None:
        yield from parts.linear(layer.with_sizes(e=1), gate, "e d", "d", (layer.leaf("ffn/shared_gate", "d e"),), False)

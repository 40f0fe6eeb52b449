"""Sparse upcycling: every expert is initialised from the ffn of a dense model, and the router is random (Komatsuzaki et
al. 2022, arXiv:2212.05055, section 3).

The function of the model is preserved if the weights of a token sum to one and no choice is dropped, as with
`SoftmaxConfig(top)` and `Dropless`. Otherwise training starts from a higher loss than that of the dense model: with
weights that are not normalized, the output of a MoE layer is only a fraction of that of the ffn.
"""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.core import trees
from llm_jax.core.checks import check
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.roles import unboxed
from llm_jax.models.architecture import architecture
from llm_jax.models.block import BlockConfig
from llm_jax.models.build import Model, abstract_parameters, initial_parameters
from llm_jax.models.config import GeneratorDiscriminatorConfig, ModelConfig, TransformerConfig

_IN_STACK = re.compile(r"((?:encoder/|decoder/)?)stack/segment_(\d+)/block_(\d+)/(.*)")
_ROUTER = "/ffn/router/"


def has_experts(config: ModelConfig) -> bool:
    """Whether the model has MoE layers."""
    return any(stack.experts for stack in config.stacks)


def check_upcycles(dense: ModelConfig, mixed: ModelConfig) -> None:
    """Checks that `dense` can be upcycled into `mixed`.

    Raises:
      ValueError: unless `mixed` equals `dense` except for experts of the same shape as the ffn that they replace.
    """
    # Compared without what affects only training or speed.
    stacks = tuple(tuple(architecture(config).stacks) for config in (dense, mixed))
    check(
        type(dense) is type(mixed),
        f"{type(dense).__name__} cannot become {type(mixed).__name__}: the type of the model must not change",
    )
    check(
        not isinstance(dense, GeneratorDiscriminatorConfig),
        "the model is a generator and a discriminator: upcycling supports decoders, encoders and encoder-decoders",
    )
    for one, other in zip(*stacks, strict=True):
        for stack in (one, other):
            check(
                not any(segment.shared for segment in stack.segments),
                "layers share their weights: upcycling requires layers with weights of their own; use another model",
            )
        check(
            one.depth == other.depth,
            f"the dense model has {one.depth} layers and the MoE model {other.depth}: the numbers must be equal",
        )
        for name in (field.name for field in dataclasses.fields(one) if field.name != "segments"):
            found, wanted = getattr(one, name), getattr(other, name)
            check(found == wanted, f"{name} is {found} in the dense model and {wanted} in the MoE model: {_SAME}")
        for number, pair in enumerate(zip(_blocks(one), _blocks(other), strict=True)):
            _check_block(number, *pair)


_SAME = "only the ffn may change; make everything else equal"


def _check_block(number: int, dense: BlockConfig, mixed: BlockConfig) -> None:
    ffn = mixed.ffn
    check(dataclasses.replace(mixed, ffn=dense.ffn) == dense, f"layer {number} differs outside its ffn: {_SAME}")
    if not isinstance(ffn, MoEConfig) or isinstance(dense.ffn, MoEConfig):
        check(ffn == dense.ffn, f"the ffn of layer {number} is {dense.ffn} and becomes {ffn}: {_SAME}")
        return
    check(
        ffn.expert == dense.ffn,
        f"the experts of layer {number} are {ffn.expert} and the dense ffn is {dense.ffn}: set `expert` to the dense "
        "ffn, with the same width",
    )
    check(
        ffn.shared is None,
        f"layer {number} has a shared expert, which has no weights in the dense model and would change its output: "
        "set `shared` to None",
    )


def upcycled(dense: ModelConfig, parameters: Any, model: Model, key: jax.Array) -> Any:
    """Initial parameters of `model`, upcycled from those of a dense model.

    Args:
      dense: config of the model of `parameters`.
      model: the same model with experts.
      key: random key of the routers.

    Raises:
      ValueError: as `check_upcycles`.
    """
    check_upcycles(dense, model.config)
    given, routers = dict(trees.named_leaves(parameters)), _routers(model, key)
    prefixes = ("",) if isinstance(dense, TransformerConfig) else ("encoder/", "decoder/")
    dense_layers = {prefix: _layers(stack) for prefix, stack in zip(prefixes, dense.stacks, strict=True)}
    wanted_layers = {prefix: _layers(stack) for prefix, stack in zip(prefixes, model.config.stacks, strict=True)}

    def leaf(path: tuple, wanted: jax.ShapeDtypeStruct) -> jax.Array:
        name = trees.path_name(path)
        if name in routers:
            return routers[name]
        found = _IN_STACK.fullmatch(name)
        if found is None:
            return jnp.asarray(given[name], wanted.dtype)
        stack, segment, block, rest = found.groups()
        # The layers that this leaf stacks, and where the dense model has them: the two models may be cut into segments
        # differently.
        numbers = [i for i, layer in enumerate(wanted_layers[stack]) if layer[:2] == (int(segment), int(block))]
        sources = [dense_layers[stack][number] for number in numbers]
        within = rest.replace("ffn/experts/", "ffn/")
        layers = [given[f"{stack}stack/segment_{s}/block_{b}/{within}"][repeat] for s, b, repeat in sources]
        stacked = jnp.stack(layers).astype(wanted.dtype)
        # [repeats, ...] -> [repeats, experts, ...]: all experts of a layer begin as copies of its ffn.
        return stacked if within == rest else jnp.broadcast_to(stacked[:, None], wanted.shape)

    return jax.tree_util.tree_map_with_path(leaf, abstract_parameters(model)[0])


def _routers(model: Model, key: jax.Array) -> dict[str, jax.Array]:
    """Newly initialised router parameters by leaf name. The compiler removes the other initialisations."""

    def fresh(key: jax.Array) -> dict[str, jax.Array]:
        values = unboxed(initial_parameters(model, key))
        return {name: value for name, value in trees.named_leaves(values) if _ROUTER in name}

    return jax.jit(fresh)(key)


def _blocks(config: TransformerConfig) -> list[BlockConfig]:
    """The block configs of all layers, in order."""
    return [block for segment in config.segments for _ in range(segment.repeats) for block in segment.blocks]


def _layers(config: TransformerConfig) -> list[tuple[int, int, int]]:
    """(segment, block of its group, repeat) of all layers, in order."""
    return [
        (number, block, repeat)
        for number, segment in enumerate(config.segments)
        for repeat in range(segment.repeats)
        for block in range(len(segment.blocks))
    ]

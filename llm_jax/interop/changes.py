"""Models with something changed in all their blocks, or in their head: what a config.json says and a family's function
does not take."""

import dataclasses
from collections.abc import Callable
from typing import Any

from llm_jax.layers.activations import Activation
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import segments
from llm_jax.models.heads import ClassHead, HeadConfig, TiedHead


def changed(config: TransformerConfig, change: Callable[[int, BlockConfig], BlockConfig]) -> TransformerConfig:
    """The model with every block changed; `change` is given the number of the layer. Layers that share their weights
    keep their segments, and are given the number of the first."""
    if any(segment.shared for segment in config.segments):
        kept = (
            dataclasses.replace(one, blocks=tuple(change(0, block) for block in one.blocks)) for one in config.segments
        )
        return dataclasses.replace(config, segments=tuple(kept))
    blocks = (block for segment in config.segments for _ in range(segment.repeats) for block in segment.blocks)
    return dataclasses.replace(config, segments=segments(tuple(change(i, block) for i, block in enumerate(blocks))))


def with_activation(config: TransformerConfig, activation: Activation) -> TransformerConfig:
    """The model with another nonlinearity in every ffn, experts included."""

    def of(ffn: Any) -> Any:
        if isinstance(ffn, MoEConfig):
            shared = None if ffn.shared is None else of(ffn.shared)
            return dataclasses.replace(ffn, expert=of(ffn.expert), shared=shared)
        return dataclasses.replace(ffn, activation=activation)

    return changed(config, lambda _, block: dataclasses.replace(block, ffn=of(block.ffn)))


def with_tied(config: TransformerConfig, tied: bool) -> TransformerConfig:
    """The model with the scores of its vocabulary from the embedding's table, or from a matrix of their own."""
    head, narrow = config.head, config.embed.table_width(config.width)
    if head is None or isinstance(head, ClassHead) or isinstance(head, TiedHead) == tied:
        return config
    transform, width = head.transform, None if tied or narrow == config.width else narrow
    transform = transform and dataclasses.replace(transform, width=width)
    alike = {"softcap": head.softcap, "bias": head.bias, "transform": transform}
    return dataclasses.replace(config, head=TiedHead(**alike) if tied else HeadConfig(**alike))

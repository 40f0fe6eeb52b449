"""Changes of all blocks or of the head of a config, for options that a family's function has no argument for."""

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
    """The model with `change(layer number, block)` in place of every block. Layers that share parameters keep their
    segments and get the number 0."""
    if any(segment.shared for segment in config.segments):
        kept = (
            dataclasses.replace(one, blocks=tuple(change(0, block) for block in one.blocks)) for one in config.segments
        )
        return dataclasses.replace(config, segments=tuple(kept))
    blocks = (block for segment in config.segments for _ in range(segment.repeats) for block in segment.blocks)
    return dataclasses.replace(config, segments=segments(tuple(change(i, block) for i, block in enumerate(blocks))))


def with_activation(config: TransformerConfig, activation: Activation) -> TransformerConfig:
    """The model with this activation function in every ffn and expert."""

    def of(ffn: Any) -> Any:
        if isinstance(ffn, MoEConfig):
            shared = None if ffn.shared is None else of(ffn.shared)
            return dataclasses.replace(ffn, expert=of(ffn.expert), shared=shared)
        return dataclasses.replace(ffn, activation=activation)

    return changed(config, lambda _, block: dataclasses.replace(block, ffn=of(block.ffn)))


def with_tied(config: TransformerConfig, tied: bool) -> TransformerConfig:
    """The model with a head that is tied to the embedding, or has its own matrix. Class heads are unchanged."""
    head, narrow = config.head, config.embed.table_width(config.width)
    if head is None or isinstance(head, ClassHead) or isinstance(head, TiedHead) == tied:
        return config
    transform, width = head.transform, None if tied or narrow == config.width else narrow
    transform = transform and dataclasses.replace(transform, width=width)
    alike = {"softcap": head.softcap, "bias": head.bias, "transform": transform}
    return dataclasses.replace(config, head=TiedHead(**alike) if tied else HeadConfig(**alike))

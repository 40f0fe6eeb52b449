"""Functions shared by decoder families: a stack from the blocks of its layers, and experts in some of them."""

import dataclasses
import itertools
import math
from collections.abc import Iterable

from llm_jax.core.checks import check
from llm_jax.layers.embed import EmbedConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.initialisers import Init, Normal
from llm_jax.layers.norms import Norm
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.heads import HeadConfig, TiedHead
from llm_jax.models.stack import Segment


def decoder(
    blocks: tuple[BlockConfig, ...],
    width: int,
    vocab_size: int,
    max_length: int,
    norm: Norm | None,
    embed: EmbedConfig = EmbedConfig(),  # noqa: B008
    head: HeadConfig | TiedHead = TiedHead(),  # noqa: B008
) -> TransformerConfig:
    """A decoder of these layers with the final norm `norm`."""
    return TransformerConfig(vocab_size, width, max_length, segments(blocks), norm, embed, head)


def segments(blocks: tuple[BlockConfig, ...]) -> tuple[Segment, ...]:
    """The layers as repeats of the shortest periodic group, and a segment for an incomplete last group. Without a
    period, runs of equal layers."""
    period = next(n for n in range(1, len(blocks) + 1) if all(a == b for a, b in zip(blocks, blocks[n:], strict=False)))
    if period == len(blocks):
        return runs(blocks)
    whole = len(blocks) // period
    rest = blocks[whole * period :]
    return (Segment(blocks[:period], whole), *((Segment(rest, 1),) if rest else ()))


def runs(blocks: tuple[BlockConfig, ...]) -> tuple[Segment, ...]:
    """The layers as runs of equal ones."""
    return tuple(Segment((block,), len(tuple(run))) for block, run in itertools.groupby(blocks))


def with_experts(
    config: TransformerConfig, experts: MoEConfig, layers: Iterable[int] | None = None
) -> TransformerConfig:
    """The same model with experts instead of the ffn of some layers, counted from 0; None: of all.

    Raises:
      ValueError: if a layer does not exist, or layers share their weights.
    """
    blocks = [block for segment in config.segments for _ in range(segment.repeats) for block in segment.blocks]
    chosen = set(range(len(blocks)) if layers is None else layers)
    check(
        chosen <= set(range(len(blocks))),
        f"layers are {sorted(chosen)} and the model has {len(blocks)}: use numbers from 0 to {len(blocks) - 1}",
    )
    check(
        not any(segment.shared for segment in config.segments),
        "the layers of a segment share their weights: set the MoE layers when the segment is built",
    )
    mixed = (dataclasses.replace(b, ffn=experts) if i in chosen else b for i, b in enumerate(blocks))
    return dataclasses.replace(config, segments=segments(tuple(mixed)))


def head_config(tied: bool, init: Init = Normal()) -> HeadConfig | TiedHead:  # noqa: B008
    """A tied head, or an untied one."""
    return TiedHead() if tied else HeadConfig(init)


def residual_init(layers: int, stddev: float = 0.02) -> Normal:
    """Initialiser of weights that write to the residual stream: smaller by 1 / sqrt(2 layers) (Radford et al. 2019,
    2.3, with two residual layers per block)."""
    return Normal(stddev / math.sqrt(2 * layers))

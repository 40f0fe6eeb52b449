"""Padding by transformers' rules: where positions count it, and where its results cannot be ours.

A transformers model computes padding like any token and hides it as a key only. Here padding sees nothing, takes no
place at an expert and changes no real token. The two differ where a result is read from a padding token, and where
padding fills an expert.

Legend: B batch, T length.
"""

import functools

import numpy as np

from llm_jax.core.checks import check
from llm_jax.interop.families import FAMILIES
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.ffn.dispatch.capacity import LimitedCapacity
from llm_jax.layers.positions.alibi import ALiBiConfig
from llm_jax.models.config import ModelConfig, TransformerConfig
from llm_jax.models.heads import ClassHead


@functools.lru_cache(maxsize=32)
def counts_tokens(config: ModelConfig) -> bool:
    """Whether transformers counts positions over real tokens only, as some families do, so that holes in a mask take
    none. Of a model that no family can say: False."""
    return any(family.expresses(config) and family.counts_tokens(config) for family in FAMILIES.values())


def check_padding(config: ModelConfig, inputs: dict[str, np.ndarray]) -> None:
    """
    Args:
      inputs: by transformers' names; masks [B, T], 0 for padding.

    Raises:
      ValueError: where transformers' result depends on what padding holds.
    """
    decoder_mask = "decoder_attention_mask" if len(config.stacks) > 1 else "attention_mask"
    for stack, name in zip(config.stacks, ("attention_mask", decoder_mask), strict=False):
        if name in inputs:
            real_BT = np.asarray(inputs[name]) != 0
            _check_row_head(stack, name, real_BT)
            _check_distances(stack, name, real_BT)
            _check_capacity(stack, name, real_BT)


def _check_row_head(config: TransformerConfig, name: str, real_BT: np.ndarray) -> None:
    if not isinstance(config.head, ClassHead) or config.head.of != "row":
        return
    token, other = (0, "end") if config.head.row == "first" else (-1, "start")
    rows = np.flatnonzero(~real_BT[:, token])
    check(
        not rows.size,
        f"{name} is 0 at the {config.head.row} token of rows {rows[:8].tolist()}, from which the scores of a whole row "
        f"are read: pad at the {other}",
    )


def _check_distances(config: TransformerConfig, name: str, real_BT: np.ndarray) -> None:
    mixers = [block.mixer for segment in config.segments for block in segment.blocks]
    linear = any(isinstance(one, AttentionConfig) and isinstance(one.scores.bias, ALiBiConfig) for one in mixers)
    if not linear or not counts_tokens(config):
        return
    before_BT = np.logical_or.accumulate(real_BT, axis=1)
    rows = np.flatnonzero((before_BT & ~real_BT & _followed(real_BT)).any(axis=1))
    check(
        not rows.size,
        f"{name} has padding between real tokens in rows {rows[:8].tolist()}: transformers takes it out of the "
        "distances of linear biases, which here are those of the row; keep padding at the ends",
    )


def _followed(real_BT: np.ndarray) -> np.ndarray:
    """Whether a real token stands at a place or after it."""
    return np.flip(np.logical_or.accumulate(np.flip(real_BT, 1), 1), 1)


def _check_capacity(config: TransformerConfig, name: str, real_BT: np.ndarray) -> None:
    length = real_BT.shape[1]
    rows = np.flatnonzero((_followed(real_BT) & ~real_BT).any(axis=1))
    for layer in config.experts if rows.size else ():
        dispatch = layer.dispatch
        if isinstance(dispatch, LimitedCapacity):
            places = dispatch.places(dispatch.group or length, 1, layer.count)
            check(
                places >= length,
                f"{name} has padding before real tokens in rows {rows[:8].tolist()}, and an expert has {places} places "
                f"for {length} tokens: transformers gives padding places that tokens then lack; pad at the end",
            )

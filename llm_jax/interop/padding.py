"""Padding in transformers: whether it counts in positions, and when it changes results.

transformers computes padding like any token and only masks it as a key. In this package padding attends to nothing,
uses no capacity of an expert and changes no real token. Results differ if they are read from a padding token, and if
padding uses capacity of an expert.

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
    """Whether transformers counts positions over real tokens only, so that padding between them has no positions. False
    for a model that no family can express."""
    return any(family.expresses(config) and family.counts_tokens(config) for family in FAMILIES.values())


def check_padding(config: ModelConfig, inputs: dict[str, np.ndarray]) -> None:
    """Checks that the results of transformers do not depend on padding.

    Args:
      inputs: by transformers' names; masks [B, T], 0 for padding.

    Raises:
      ValueError: if they depend on the content of padding tokens.
    """
    decoder_mask = "decoder_attention_mask" if len(config.stacks) > 1 else "attention_mask"
    for stack, name in zip(config.stacks, ("attention_mask", decoder_mask), strict=False):
        if name in inputs:
            real_BT = np.asarray(inputs[name]) != 0
            _check_row_head(stack, name, real_BT)
            _check_distances(stack, name, real_BT)
            _check_capacity(stack, name, real_BT)


def _check_row_head(config: TransformerConfig, name: str, real_BT: np.ndarray) -> None:
    if not isinstance(config.head, ClassHead) or config.head.of != "sequence":
        return
    token, other = (0, "end") if config.head.token == "first" else (-1, "start")
    padded = np.flatnonzero(~real_BT[:, token])
    check(
        not padded.size,
        f"{name} is 0 at the {config.head.token} token of sequences {padded[:8].tolist()}: the class head reads that "
        f"token; pad at the {other}",
    )


def _check_distances(config: TransformerConfig, name: str, real_BT: np.ndarray) -> None:
    mixers = [block.mixer for segment in config.segments for block in segment.blocks]
    linear = any(isinstance(one, AttentionConfig) and isinstance(one.scores.bias, ALiBiConfig) for one in mixers)
    if not linear or not counts_tokens(config):
        return
    before_BT = np.logical_or.accumulate(real_BT, axis=1)
    padded = np.flatnonzero((before_BT & ~real_BT & _followed(real_BT)).any(axis=1))
    check(
        not padded.size,
        f"{name} has padding between real tokens in sequences {padded[:8].tolist()}: transformers does not count it in "
        "ALiBi's distances, and this package does; pad at the ends",
    )


def _followed(real_BT: np.ndarray) -> np.ndarray:
    """Whether a position or one after it has a real token, [B, T]."""
    return np.flip(np.logical_or.accumulate(np.flip(real_BT, 1), 1), 1)


def _check_capacity(config: TransformerConfig, name: str, real_BT: np.ndarray) -> None:
    length = real_BT.shape[1]
    padded = np.flatnonzero((_followed(real_BT) & ~real_BT).any(axis=1))
    for layer in config.experts if padded.size else ():
        dispatch = layer.dispatch
        if isinstance(dispatch, LimitedCapacity):
            capacity = dispatch.expert_capacity(dispatch.group or length, 1, layer.count)
            check(
                capacity >= length,
                f"{name} has padding before real tokens in sequences {padded[:8].tolist()}, and an expert has capacity "
                f"for {capacity} of {length} tokens: in transformers padding uses capacity; pad at the end",
            )

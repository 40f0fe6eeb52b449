"""Sequences of token ids of different lengths, checked and padded to inputs of a model.

Legend: B batch, T padded length.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_jax.core.checks import check
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.inputs import Inputs

_BUCKET = 64
"""Sequences are padded to a multiple of this, so that those of similar lengths share a compiled program."""


def check_prompts(prompts: Sequence[Sequence[int]], vocab_size: int) -> None:
    """Checks that no sequence is empty and that every token is in the model's vocabulary. JAX clamps an index outside
    of it silently.

    Raises:
      ValueError: if not.
    """
    check(
        all(map(len, prompts)) and len(prompts) > 0,
        "a prompt is empty: at least one token is required, such as bos",
    )
    for number, prompt in enumerate(prompts):
        found = np.asarray(prompt)
        check(
            found.ndim == 1 and np.issubdtype(found.dtype, np.integer),
            f"prompt {number} has shape {found.shape} and type {found.dtype}: a list of token ids is required",
        )
        wrong = found[(found < 0) | (found >= vocab_size)]
        check(
            not wrong.size,
            f"prompt {number} has token {wrong[:1].sum()}, and the model's tokens are 0 to {vocab_size - 1}: "
            "use the tokenizer that the model was trained with",
        )


def padded(prompts: Sequence[Sequence[int]], pad_id: int, most: int) -> Inputs:
    """Numpy inputs [B, T], padded on the right to a multiple of 64 or to `most`, whichever is less. Each sequence is
    one document."""
    longest = max(map(len, prompts))
    length = min(-(-longest // _BUCKET) * _BUCKET, most)
    tokens_BT = np.full((len(prompts), length), pad_id, np.int32)
    segments_BT = np.zeros((len(prompts), length), np.int32)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, : len(prompt)] = prompt
        segments_BT[row, : len(prompt)] = 1
    positions_BT = np.broadcast_to(np.arange(length, dtype=np.int32), tokens_BT.shape)
    # Declared as arrays of jax, which they become in a compiled program.
    arrays: Any = tokens_BT, positions_BT, segments_BT
    return Inputs(arrays[0], SequenceInfo(*arrays[1:]))

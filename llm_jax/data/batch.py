"""The batch that a decoder or encoder sees. B rows, T = sequence_length."""

from collections.abc import Mapping
from typing import Any, Generic, Self, TypeVar

import flax.struct
import jax
import numpy as np

Array = TypeVar("Array", jax.Array, np.ndarray)


@flax.struct.dataclass
class Batch(Generic[Array]):
    """Inputs, targets and what counts: arrays of numpy where rows are read, of jax in programs."""

    tokens_BT: Array
    """int32 inputs."""
    targets_BT: Array
    """int32; for a causal model the token after each input."""
    segment_ids_BT: Array
    """int32; 0 is padding. A token sees only its own segment."""
    positions_BT: Array
    """int32, from 0 in every segment."""
    loss_weights_BT: Array
    """float32; 0 where the target is padding or belongs to another document than the input."""

    @classmethod
    def from_rows(cls, rows: Mapping[str, Any]) -> Self:
        """The batch of next-token prediction, from stacked rows: int32 arrays [B, T + 1]."""
        segments = rows["segment_ids"]
        same_document = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] != 0)
        return cls(
            tokens_BT=rows["tokens"][:, :-1],
            targets_BT=rows["tokens"][:, 1:],
            segment_ids_BT=segments[:, :-1],
            positions_BT=rows["positions"][:, :-1],
            loss_weights_BT=same_document.astype(np.float32),
        )

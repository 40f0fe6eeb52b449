"""The batch that a decoder or encoder sees. B rows, T = sequence_length."""

from typing import Self

import flax.struct
import jax
import numpy as np

Array = jax.Array | np.ndarray


@flax.struct.dataclass
class Batch:
    """Inputs, targets and what counts."""

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
    def from_rows(cls, rows: dict[str, Array]) -> Self:
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

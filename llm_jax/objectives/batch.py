"""The batch of objectives with one target for each token.

Legend: B batch, T length.
"""

from collections.abc import Mapping
from typing import Any, Generic, Self, TypeVar

import flax.struct
import jax
import numpy as np

from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.inputs import Inputs

Array = TypeVar("Array", jax.Array, np.ndarray)


@flax.struct.dataclass
class Batch(Generic[Array]):
    """Inputs, targets and their weights: numpy arrays on the host, jax arrays in compiled functions.

    Attributes:
      inputs: what the model reads.
      targets_BT: int32; for a causal model the token after each input. If there are fewer than tokens, they are of the
        last tokens of the sequence.
      loss_weights_BT: float32; 0 where the target is padding or belongs to another document than the input.
      at_BT: int32, the index in the sequence of the token that predicts each target; an index may occur again with
        weight 0. None: all tokens in their order, or the last ones.
    """

    inputs: Inputs
    targets_BT: Array
    loss_weights_BT: Array
    at_BT: Array | None = None

    @classmethod
    def next_tokens(cls, rows: Mapping[str, Any]) -> Self:
        """The batch of next-token prediction, from int32 arrays [B, T + 1]: `tokens`, `segment_ids`, `positions`."""
        segments = rows["segment_ids"]
        # The first token of a document is no target of the one before it, and padding is none at all.
        same_document = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] != 0)
        return cls(
            inputs=Inputs(rows["tokens"][:, :-1], SequenceInfo(rows["positions"][:, :-1], segments[:, :-1])),
            targets_BT=rows["tokens"][:, 1:],
            loss_weights_BT=same_document.astype(np.float32),
        )

"""Inputs that all layers of one call share besides the residual stream.

Legend: B batch, T length, S cache positions or encoder tokens, D model width, R relative positions, N heads.
"""

import flax.struct
import jax

from llm_jax.core.checks import given
from llm_jax.layers.sequence import SequenceInfo


@flax.struct.dataclass
class Context:
    """Positions of the tokens, KV cache positions, and encoder output.

    Attributes:
      queries: positions and segment ids of the T tokens of this call.
      slots: positions and segment ids of the tokens at the S cache positions, including those of this call; None
        without a KV cache.
      slot: int32 scalar, the first cache position that this call writes; None without a KV cache.
      encoded: positions and segment ids of the S encoder tokens; None without cross-attention.
      encoded_BSD: the encoder output; None if the KV cache already holds its keys and values.
      tokens_BT: int32 ids of the T tokens; None if only their embeddings are known.
      bias_RN: learned relative position biases, shared by all layers; None without such biases.
    """

    queries: SequenceInfo
    slots: SequenceInfo | None = None
    slot: jax.Array | None = None
    encoded: SequenceInfo | None = None
    encoded_BSD: jax.Array | None = None
    tokens_BT: jax.Array | None = None
    bias_RN: jax.Array | None = None

    @property
    def first_slot(self) -> jax.Array:
        """`slot`, which a layer with a KV cache requires. Raises ValueError if it is None."""
        return given(self.slot, "context.slot is None and a layer has a state to write: pass the slot, or no state")

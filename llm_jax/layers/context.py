"""What all layers of one call share besides the residual stream.

Legend: B batch, T length, S slots of the cache or tokens of the encoder, D model width, R relative positions, N heads.
"""

import flax.struct
import jax

from llm_jax.core.checks import given
from llm_jax.layers.sequence import SequenceInfo


@flax.struct.dataclass
class Context:
    """Positions of the tokens, the cache, and the output of an encoder.

    Attributes:
      queries: positions and documents of the T tokens of this call.
      slots: positions and documents of the tokens in the S slots of the cache, those of this call included; None
        without a cache.
      slot: int32 scalar, the first slot that this call writes; None without a cache.
      encoded: positions and documents of the S tokens that cross attention reads; None without cross attention.
      encoded_BSD: the output of the encoder; None where the cache already holds its keys and values.
      tokens_BT: int32 ids of the T tokens; None where only their vectors are known.
      bias_RN: learned biases of scores by relative position, which all layers share; None without such biases.
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
        """`slot`, for what writes a cache. ValueError without one."""
        return given(self.slot, "the context has no slot, and a layer has a state to write: give it both or neither")

"""What the layers of one call have in common besides the stream.

Legend: B batch, T length, S slots of the cache or tokens of the memory, D model width, R relative places, N heads.
"""

import flax.struct
import jax

from llm_jax.core.checks import given
from llm_jax.layers.sequence import SequenceInfo


@flax.struct.dataclass
class Context:
    """Where the tokens stand, and what else they may read.

    Attributes:
      queries: where the T tokens of the stream stand.
      slots: where the tokens in the S slots of the cache stand, those of this call among them; None without a cache.
      slot: int32 scalar, the first slot that this call writes; None without a cache.
      memory: where the S tokens stand that cross attention reads; None where nothing does.
      memory_BSD: what an encoder made of them; None where the cache already holds their keys and values.
      tokens_BT: int32 ids of the T tokens; None where only their vectors are known.
      bias_RN: learned biases of scores by relative place, which all layers share; None without such biases.
    """

    queries: SequenceInfo
    slots: SequenceInfo | None = None
    slot: jax.Array | None = None
    memory: SequenceInfo | None = None
    memory_BSD: jax.Array | None = None
    tokens_BT: jax.Array | None = None
    bias_RN: jax.Array | None = None

    @property
    def first_slot(self) -> jax.Array:
        """`slot`, for what writes a cache. ValueError without one."""
        return given(self.slot, "the context has no slot, and a layer has a state to write: give it both or neither")

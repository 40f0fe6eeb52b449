"""What a mixer remembers between calls, as explicit pytrees: passed in, returned, never hidden.

Legend: B batch, K key/value heads, S slots, H head size.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.core.checks import check
from llm_jax.layers.sequence import SequenceInfo


@flax.struct.dataclass
class KeyValues:
    """Keys and values of one attention layer, [B, K, S, H] each."""

    k_BKSH: jax.Array
    v_BKSH: jax.Array

    def write(self, k_BKTH: jax.Array, v_BKTH: jax.Array, slot: jax.Array) -> "KeyValues":
        """Puts T new entries at slots `slot`, `slot` + 1, ... of every row."""
        put = lambda old, new: jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (0, 0, slot, 0))  # noqa: E731
        return KeyValues(put(self.k_BKSH, k_BKTH), put(self.v_BKSH, v_BKTH))

    def replaced(self, new: "KeyValues") -> "KeyValues":
        """All entries anew, in the type of the old ones."""
        return jax.tree.map(lambda old, array: array.astype(old.dtype), self, new)


@flax.struct.dataclass
class Cache:
    """State of a whole model between calls.

    Attributes:
      layers: by segment, by repeat, by block: the state of that mixer.
      slots: where the token in each slot stands; an empty slot has segment 0, which nothing sees.
      length: int32 scalar, number of slots written. All rows write the same slots: a shorter prompt leaves padding.
      encoded: positions and documents of the tokens that cross attention reads; None without cross attention.
    """

    layers: tuple
    slots: SequenceInfo
    length: jax.Array
    encoded: SequenceInfo | None = None

    def place(self, new: SequenceInfo) -> "Cache":
        """Records where the next T tokens stand, [B or 1, T]. `layers` and `length` stay as they were.

        Raises:
          ValueError: if T exceeds the number of slots.
        """
        tokens, (batch, slots) = new.positions_BT.shape[1], self.slots.positions_BT.shape
        check(tokens <= slots, f"{tokens} tokens do not fit a cache of {slots} slots: allocate a larger one")

        def put(old_BS: jax.Array, new_BT: jax.Array) -> jax.Array:
            # Written as it is, a row that stands for all would be that of the first alone.
            return jax.lax.dynamic_update_slice(old_BS, jnp.broadcast_to(new_BT, (batch, tokens)), (0, self.length))

        positions = put(self.slots.positions_BT, new.positions_BT)
        return dataclasses.replace(self, slots=SequenceInfo(positions, put(self.slots.documents_BT, new.documents_BT)))


def empty_slots(batch: int, slots: int) -> SequenceInfo:
    """SequenceInfo of `slots` empty slots."""
    return SequenceInfo(jnp.zeros((batch, slots), jnp.int32), jnp.zeros((batch, slots), jnp.int32))

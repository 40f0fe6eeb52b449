"""KV caches as explicit pytrees: they are passed in and returned.

Legend: B batch, K key/value heads, S slots, H head size.
"""

import dataclasses
from typing import Any

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
        """Writes T new entries at cache positions `slot`, `slot` + 1, ... of every sequence."""
        put = lambda old, new: jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (0, 0, slot, 0))  # noqa: E731
        return KeyValues(put(self.k_BKSH, k_BKTH), put(self.v_BKSH, v_BKTH))

    def replaced(self, new: "KeyValues") -> "KeyValues":
        """`new` cast to the dtypes of the present entries."""
        return jax.tree.map(lambda old, array: array.astype(old.dtype), self, new)


@flax.struct.dataclass
class Cache:
    """State of a model between decoding calls.

    Attributes:
      layers: {branch: state} of each block, by segment, by repeat, by block. Every array has the batch first.
      slots: position and segment id of the token at each cache position, and whether it belongs to a prefix, for a
        model with the mask `PrefixCausal`. An empty one has segment 0 and is masked.
      length: int32 scalar, number of cache positions written. All sequences write the same cache positions: a shorter
        prompt is padded.
      encoded: positions and segment ids of the encoder output; None without cross-attention.
    """

    # One array for each layer, not a stack of them: a scan over layers would copy the whole cache for every token
    # (experiments/LOG.md).
    layers: tuple
    slots: SequenceInfo
    length: jax.Array
    encoded: SequenceInfo | None = None

    def place(self, new: SequenceInfo) -> "Cache":
        """Records the positions of the next T tokens, [B or 1, T]. `layers` and `length` do not change.

        Raises:
          ValueError: if T exceeds the number of cache positions.
        """
        tokens, (batch, slots) = new.positions_BT.shape[1], self.slots.positions_BT.shape
        check(tokens <= slots, f"{tokens} tokens do not fit a cache of {slots} positions: allocate a larger cache")

        def put(old_BS: jax.Array, new_BT: jax.Array) -> jax.Array:
            # Without the broadcast, an array [1, T] would be written to the first sequence only.
            return jax.lax.dynamic_update_slice(old_BS, jnp.broadcast_to(new_BT, (batch, tokens)), (0, self.length))

        placed = dataclasses.replace(
            self.slots,
            positions_BT=put(self.slots.positions_BT, new.positions_BT),
            segment_ids_BT=put(self.slots.documents_BT, new.documents_BT),
        )
        if placed.prefix_BT is not None:
            prefix_BT = jnp.zeros(new.positions_BT.shape, bool) if new.prefix_BT is None else new.prefix_BT
            placed = dataclasses.replace(placed, prefix_BT=put(placed.prefix_BT, prefix_BT))
        return dataclasses.replace(self, slots=placed)

    def sequences(self, rows_R: jax.Array) -> "Cache":
        """A cache of R sequences: sequence r continues a copy of sequence `rows_R`[r] of this one, int32 [R]."""
        layers, slots, encoded = jax.tree.map(lambda leaf: leaf[rows_R], (self.layers, self.slots, self.encoded))
        return Cache(layers, slots, self.length, encoded)

    def reordered(self, rows_R: jax.Array) -> "Cache":
        """`sequences` if each sequence is replaced by one with the same prompt and encoder output: positions, and keys
        and values of cross-attention, are then equal and are not copied."""

        def block(states: dict[str, Any]) -> dict[str, Any]:
            move = lambda state: jax.tree.map(lambda leaf: leaf[rows_R], state)  # noqa: E731
            return {name: state if name == "cross" else move(state) for name, state in states.items()}

        layers = tuple(tuple(tuple(map(block, repeat)) for repeat in segment) for segment in self.layers)
        return dataclasses.replace(self, layers=layers)


def empty_slots(batch: int, slots: int, prefix: bool = False) -> SequenceInfo:
    """SequenceInfo of `slots` empty cache positions.

    Args:
      prefix: whether the model has the mask `PrefixCausal`.
    """
    zeros_BS = jnp.zeros((batch, slots), jnp.int32)
    return SequenceInfo(zeros_BS, zeros_BS, prefix_BT=zeros_BS.astype(bool) if prefix else None)

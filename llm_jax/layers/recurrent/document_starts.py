"""Document starts and padding of packed sequences, for recurrent mixers.

Legend: B batch, T length.
"""

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.layers.sequence import SequenceInfo


@flax.struct.dataclass
class Documents:
    """Document starts and padding of sequences.

    Attributes:
      starts_BT: whether a token is the first real one of its document.
      real_BT: whether a token is not padding.
      last_B: int32, the segment id of the last real token of the sequence; 0 if there is none.
    """

    starts_BT: jax.Array
    real_BT: jax.Array
    last_B: jax.Array


def segment_ids(sequence: SequenceInfo) -> jax.Array:
    """int32 [B, T], the segment id of each token; 1 for unpacked sequences."""
    given = sequence.segment_ids_BT
    return jnp.ones_like(sequence.positions_BT, jnp.int32) if given is None else given


def documents(sequence: SequenceInfo, before_B: jax.Array | None = None) -> Documents:
    """The documents of a batch of sequences.

    A document begins where the segment id differs from that of the previous real token. Positions are not read, so a
    sequence without segment ids is one document.

    Args:
      before_B: int32, the segment id of the last real token of earlier calls, 0 if there was none; None: no calls.
    """
    segments_BT = segment_ids(sequence)
    if before_B is None:
        before_B = jnp.zeros_like(segments_BT[:, 0])
    real_BT = segments_BT != 0
    joined = jnp.concatenate([before_B[:, None], segments_BT], axis=1)
    # Index of each real token, 0 for padding; their running maximum is the latest real token. Index 0 is the token
    # before the sequence.
    real = jnp.where(joined != 0, jnp.arange(joined.shape[1]), 0)
    latest = jnp.take_along_axis(joined, jax.lax.cummax(real, axis=1), axis=1)
    return Documents(real_BT & (segments_BT != latest[:, :-1]), real_BT, latest[:, -1])

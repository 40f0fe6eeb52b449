"""Where documents begin and where padding stands, for mixers that run along a row.

Legend: B batch, T length.
"""

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.layers.sequence import SequenceInfo


@flax.struct.dataclass
class Documents:
    """What a recurrence asks of a row.

    Attributes:
      starts_BT: whether a token is the first real one of its document.
      real_BT: whether it is no padding.
      last_B: int32, the document of the last real token up to the row's end; 0 where there is none.
    """

    starts_BT: jax.Array
    real_BT: jax.Array
    last_B: jax.Array


def segment_ids(place: SequenceInfo) -> jax.Array:
    """int32 [B, T], the document of each token; 1 where each row is one."""
    given = place.segment_ids_BT
    return jnp.ones_like(place.positions_BT, jnp.int32) if given is None else given


def documents(place: SequenceInfo, before_B: jax.Array | None = None) -> Documents:
    """The documents of a row.

    A document begins where the segment differs from that of the previous real token; what the positions say is left
    to what rotates by them, so that a row without segment ids is one document.

    Args:
      before_B: int32, the document of the last real token of earlier calls, 0 where there was none; None: no calls.
    """
    segments_BT = segment_ids(place)
    if before_B is None:
        before_B = jnp.zeros_like(segments_BT[:, 0])
    real_BT = segments_BT != 0
    joined = jnp.concatenate([before_B[:, None], segments_BT], axis=1)
    real = jnp.where(joined != 0, jnp.arange(joined.shape[1]), 0)
    latest = jnp.take_along_axis(joined, jax.lax.cummax(real, axis=1), axis=1)
    return Documents(real_BT & (segments_BT != latest[:, :-1]), real_BT, latest[:, -1])

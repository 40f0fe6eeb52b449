"""Positions and segment ids of the tokens of a sequence.

Legend: B batch, T length, S length of the keys.
"""

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.core.checks import given


@flax.struct.dataclass
class SequenceInfo:
    """Positions, segment ids and types of the tokens of a batch of sequences.

    Attributes:
      positions_BT: int32, from 0 at the start of each document.
      segment_ids_BT: int32, the document of each token; 0 is padding, which no token attends to. None: every sequence
        is one document without padding, and a cheaper mask is used.
      types_BT: int32, the token type, such as the first or second sentence of BERT. None: type 0.
      order_BT: int32, rank of a token in the factorization order of its document (XLNet). All tokens attend to tokens
        of rank 0, which are not predicted. None: all tokens have rank 0.
      targets_BT: bool, whether this is a query-stream token (XLNet): it has the rank of the token that it predicts and
        a learned vector instead of that token's embedding, and no other token attends to it. None: there are none.
      prefix_BT: bool, whether a token belongs to the prefix of its document, its first tokens, to which the whole
        document attends under the mask `PrefixCausal`. None: no document has a prefix.
      fixed_lengths_BT: int32, overrides `lengths_BT`. None: it is computed.
    """

    positions_BT: jax.Array
    segment_ids_BT: jax.Array | None = None
    types_BT: jax.Array | None = None
    order_BT: jax.Array | None = None
    targets_BT: jax.Array | None = None
    prefix_BT: jax.Array | None = None
    fixed_lengths_BT: jax.Array | None = None

    @property
    def lengths_BT(self) -> jax.Array:
        """int32 [B, T] or [B, 1], the length of a token's document: one more than its last position, without padding
        and other documents. All code that depends on the length of a document must read it here, so that results
        depend neither on padding nor on the rest of the batch. Padding has the length 0."""
        if self.fixed_lengths_BT is not None:
            return self.fixed_lengths_BT
        ends_BT = self.positions_BT + 1
        if self.segment_ids_BT is None:
            return jnp.max(ends_BT, axis=1, keepdims=True)
        same_BTS = same_document(self.segment_ids_BT, self.segment_ids_BT)
        return jnp.max(jnp.where(same_BTS, ends_BT[:, None, :], 0), axis=2)

    @property
    def documents_BT(self) -> jax.Array:
        """`segment_ids_BT`.

        Raises:
          ValueError: if there are none.
        """
        return given(self.segment_ids_BT, "sequence.segment_ids_BT is None and is required here: set it")

    @property
    def real_BT(self) -> jax.Array:
        """bool [B, T], False for padding."""
        ids_BT = self.segment_ids_BT
        return jnp.ones(self.positions_BT.shape, bool) if ids_BT is None else ids_BT != 0

    def part(self, places: slice | jax.Array) -> "SequenceInfo":
        """The tokens at `places` of every sequence: a slice, or indices [n], int32, clipped to the last token."""
        # Clipped: blocks of attention pad their indices past the end (`Cut.indices` of attention/blocks.py) and mask
        # those tokens.
        take = lambda x: x[:, places] if isinstance(places, slice) else jnp.take(x, places, axis=1, mode="clip")  # noqa: E731
        return jax.tree.map(take, self)


def same_document(queries_BT: jax.Array | None, keys_BS: jax.Array | None) -> jax.Array:
    """Whether a query and a key belong to the same document and are not padding: boolean [B, T, S], or [1, 1, 1]
    without segment ids."""
    if queries_BT is None:
        return jnp.ones((1, 1, 1), bool)
    keys_B1S = given(keys_BS, "queries have segment ids and keys have none: set them for both")[:, None, :]
    # Padding has the id 0, so without the second condition padding would attend to padding.
    return (queries_BT[:, :, None] == keys_B1S) & (keys_B1S != 0)

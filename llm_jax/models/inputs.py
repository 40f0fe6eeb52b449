"""Inputs of a model.

Legend: B batch, T length, S length of the encoder's sequence, D model width, E width of the embedding table.
"""

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.core.checks import check, given
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.outputs import EncoderOutput


@flax.struct.dataclass
class Inputs:
    """The inputs of one call: the same for decoders, encoders and encoder-decoders.

    Attributes:
      tokens_BT: int32 token ids, for an encoder-decoder those of the decoder. None if `features_BTE` are given.
      sequence: positions and segment ids of the tokens. None: every sequence is one document without padding, which
        starts here or, with a KV cache, continues it.
      encoder: inputs of the encoder of an encoder-decoder, [B, S]. In packed sequences, a decoder token attends to the
        encoder tokens of the same segment id.
      encoded: the encoder output for cross-attention, instead of `encoder`, if it is already computed. With a KV cache
        only the first call requires it.
      features_BTE: vectors instead of token embeddings, such as those of a soft prompt or an image.
    """

    tokens_BT: jax.Array | None = None
    sequence: SequenceInfo | None = None
    encoder: "Inputs | None" = None
    encoded: EncoderOutput | None = None
    features_BTE: jax.Array | None = None

    @classmethod
    def of(cls, inputs: "Inputs | jax.Array") -> "Inputs":
        """`inputs` as `Inputs`; an array [B, T] of token ids becomes `Inputs(tokens_BT=...)`."""
        return inputs if isinstance(inputs, Inputs) else cls(tokens_BT=inputs)

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T).

        Raises:
          ValueError: if there are neither tokens nor features, or both.
        """
        found = [x for x in (self.tokens_BT, self.features_BTE) if x is not None]
        check(
            len(found) == 1,
            f"inputs have {len(found)} of tokens_BT and features_BTE: give exactly one of them",
        )
        batch, length = found[0].shape[:2]
        return batch, length

    @property
    def ids_BT(self) -> jax.Array:
        """`tokens_BT`.

        Raises:
          ValueError: if there are none.
        """
        return given(self.tokens_BT, "inputs.tokens_BT is None and is required here: set it")

    def located(self, start: int | jax.Array = 0) -> SequenceInfo:
        """`sequence`; if there is none, positions that count from `start`."""
        if self.sequence is not None:
            return self.sequence
        batch, length = self.shape
        return SequenceInfo(jnp.broadcast_to(start + jnp.arange(length, dtype=jnp.int32), (batch, length)))

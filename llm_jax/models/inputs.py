"""What a model reads.

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
      tokens_BT: int32 token ids; of an encoder-decoder those of the decoder. None where `features_BTE` are given.
      sequence: positions and documents of the tokens. None: every sequence is one document without padding, which
        begins here or, with a cache, continues it.
      encoder: inputs of the encoder of an encoder-decoder, [B, S]. Where sequences are packed, a token of the decoder
        reads the encoder's tokens of the same segment id.
      encoded: the output of an encoder, in place of `encoder`, where it is computed already; what cross attention
        reads. With a cache only the first call needs it.
      features_BTE: vectors in place of the embeddings of tokens, such as those of a soft prompt, or of an image.
    """

    tokens_BT: jax.Array | None = None
    sequence: SequenceInfo | None = None
    encoder: "Inputs | None" = None
    encoded: EncoderOutput | None = None
    features_BTE: jax.Array | None = None

    @classmethod
    def of(cls, inputs: "Inputs | jax.Array") -> "Inputs":
        """`inputs`; an array [B, T] of token ids is short for `Inputs(tokens_BT=...)`.

        Raises:
          ValueError: if there are neither tokens nor features, or both.
        """
        found = inputs if isinstance(inputs, Inputs) else cls(tokens_BT=inputs)
        given_arrays = sum(x is not None for x in (found.tokens_BT, found.features_BTE))
        check(given_arrays == 1, f"inputs have {given_arrays} of tokens_BT and features_BTE: exactly one is required")
        return found

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        batch, length = (self.ids_BT if self.features_BTE is None else self.features_BTE).shape[:2]
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

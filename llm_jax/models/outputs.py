"""What a model returns.

Legend: B batch, T length, S length of an encoder's sequence, D model width, V vocabulary, C classes.
"""

from typing import Any

import flax.struct
import jax

from llm_jax.layers.sequence import SequenceInfo


@flax.struct.dataclass
class EncoderOutput:
    """What cross attention reads.

    Attributes:
      hidden_BSD: last hidden states of an encoder.
      sequence: positions and documents of its tokens; a token of the decoder reads those of its own document, by
        segment id.
      aux: routing statistics of the encoder's MoE layers, as `Output.aux`.
    """

    hidden_BSD: jax.Array
    sequence: SequenceInfo
    aux: Any = flax.struct.field(default_factory=dict)


@flax.struct.dataclass
class Output:
    """Result of a forward pass.

    Attributes:
      hidden_BTD: last hidden states after the final norm, in the compute type.
      logits_BTV: float32 scores, as the head says: of the vocabulary [B, T, V], of classes of tokens [B, T, C] or of
        whole sequences [B, 1, C]; None without a head, or where only hidden states were asked for.
      aux: routing statistics of MoE layers, by the path of their block in the parameters, such as
        'stack/segment_0/block_1'; empty with a cache.
      cache: the cache with this call's tokens added; None if none was given.
    """

    hidden_BTD: jax.Array
    logits_BTV: jax.Array | None = None
    cache: Any = None
    aux: Any = flax.struct.field(default_factory=dict)

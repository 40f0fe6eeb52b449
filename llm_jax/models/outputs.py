"""Outputs of a model.

Legend: B batch, T length, S length of an encoder's sequence, D model width, V vocabulary, C classes.
"""

from typing import Any

import flax.struct
import jax

from llm_jax.layers.sequence import SequenceInfo


@flax.struct.dataclass
class EncoderOutput:
    """The encoder output, to which cross-attention attends.

    Attributes:
      hidden_BSD: last hidden states of an encoder.
      sequence: positions and segment ids of its tokens; a decoder token attends to those with its own segment id.
      aux: routing statistics of the encoder's MoE layers, as `Output.aux`.
    """

    hidden_BSD: jax.Array
    sequence: SequenceInfo
    aux: Any = flax.struct.field(default_factory=dict)


@flax.struct.dataclass
class Output:
    """Result of a forward pass.

    Attributes:
      hidden_BTD: last hidden states after the final norm, in the compute dtype.
      logits_BTV: float32 scores of the head: of the vocabulary [B, T, V], of classes of tokens [B, T, C] or of whole
        sequences [B, 1, C]; None without a head, or if only hidden states were requested.
      aux: routing statistics of MoE layers, by the path of their block in the parameters, such as
        'stack/segment_0/block_1'; empty with a KV cache.
      cache: the KV cache with the tokens of this call; None if none was given.
      trunk_BTD: the input of the last segment, which the modules of `ParallelHeads` read; None if the model has none.
    """

    hidden_BTD: jax.Array
    logits_BTV: jax.Array | None = None
    cache: Any = None
    aux: Any = flax.struct.field(default_factory=dict)
    trunk_BTD: jax.Array | None = None

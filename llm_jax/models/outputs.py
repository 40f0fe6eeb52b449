"""What a model returns."""

from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class Output:
    """Result of a forward pass. B batch, T length, D width, V vocabulary.

    Attributes:
      hidden_BTD: last hidden states after the final norm, in the compute type.
      logits_BTV: float32 scores, as the head says: of the vocabulary [B, T, V], of classes of tokens [B, T, C] or of
        whole rows [B, 1, C]; None without a head, or where only hidden states were asked for.
      reports: what layers of experts tell, by the path of their block in the parameters, such as
        'stack/segment_0/block_1'; with a cache none.
      cache: the cache with this call's tokens added; None if none was given.
    """

    hidden_BTD: jax.Array
    logits_BTV: jax.Array | None = None
    cache: Any = None
    reports: Any = flax.struct.field(default_factory=dict)

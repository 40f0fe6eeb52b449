"""The bases of position encodings: added to the embedding, applied to queries and keys, or added to scores.

Legend: B batch, T query length, S key length, D width, N heads, H head size.
"""

import abc
from collections.abc import Callable

import jax

from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision


@configclass
class AddedPosition(abc.ABC):
    """Position vectors that are added to the embedding. To add a type, derive a configclass from it."""

    @abc.abstractmethod
    def build(self, length: int, width: int, precision: Precision, name: str) -> Callable[[jax.Array], jax.Array]:
        """A callable, such as a module, from positions [B, T] int32 below `length` to [B, T, D] in the compute
        dtype."""

    @abc.abstractmethod
    def parameters(self, length: int, width: int) -> int:
        """Number of parameters."""


@configclass
class RotaryPosition(abc.ABC):
    """A transformation of queries and keys by their positions. To add a type, derive a configclass from it."""

    @abc.abstractmethod
    def check_fits(self, head_dim: int) -> None:
        """Raises ValueError if the type does not support heads of `head_dim` features."""

    @abc.abstractmethod
    def rotate(self, x_BNTH: jax.Array, positions_BT: jax.Array, lengths_BT: jax.Array | None = None) -> jax.Array:
        """Transformed queries or keys, with the same shape and dtype.

        Args:
          lengths_BT: int32 [B, T] or [B, 1], length of the document of each token; None: the last position of a
            sequence determines its length.
        """


@configclass
class PositionBias(abc.ABC):
    """A bias of the score of a query and a key that depends on their positions.

    To add a type, derive a configclass from it.
    """

    @abc.abstractmethod
    def across(
        self, heads: int, queries_BT: jax.Array, keys_BS: jax.Array, bias_RN: jax.Array | None = None
    ) -> jax.Array:
        """Biases between positions, float32 [B, N, T, S].

        Args:
          bias_RN: the bias table of `RelativeBiasConfig`, which all layers share; None for other types.
        """

"""The bases of positions: added to the embedding, turned into queries and keys, or added to scores.

Legend: B batch, T query length, S key length, D width, N heads, H head size.
"""

import abc
from collections.abc import Callable

import jax

from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision


@configclass
class AddedPosition(abc.ABC):
    """Vectors of positions that are added to the embedding. Derive a configclass from it to use one of your own."""

    @abc.abstractmethod
    def build(self, length: int, width: int, precision: Precision, name: str) -> Callable[[jax.Array], jax.Array]:
        """A callable, such as a module, from positions [B, T] int32 below `length` to [B, T, D] in the compute type."""

    @abc.abstractmethod
    def parameters(self, length: int, width: int) -> int:
        """Number of parameters."""


@configclass
class RotaryPosition(abc.ABC):
    """A transformation of queries and keys by their positions. Derive a configclass from it to use one of your own."""

    @abc.abstractmethod
    def check_fits(self, head_dim: int) -> None:
        """It can transform heads of `head_dim` features. Raises ValueError if it cannot."""

    @abc.abstractmethod
    def rotate(self, x_BNTH: jax.Array, positions_BT: jax.Array, lengths_BT: jax.Array | None = None) -> jax.Array:
        """Transformed queries or keys, same shape and type.

        Args:
          lengths_BT: int32 [B, T] or [B, 1], length of the sequence of each token; None: a sequence ends at its last
            position.
        """


@configclass
class PositionBias(abc.ABC):
    """A number that is added to the score of a query and a key for their positions.

    Derive a configclass from it to use one of your own.
    """

    @abc.abstractmethod
    def across(
        self, heads: int, queries_BT: jax.Array, keys_BS: jax.Array, bias_RN: jax.Array | None = None
    ) -> jax.Array:
        """Biases between positions, float32 [B, N, T, S].

        Args:
          bias_RN: the table that `RelativeBiasConfig` shares over the layers; None for others.
        """

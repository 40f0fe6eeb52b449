"""The base of feed-forward layers.

Legend: B batch, T length, D model width.
"""

import abc

import flax.linen as nn

from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision


@configclass
class FFN(abc.ABC):
    """A layer that computes each token by itself, or sends it to experts that do.

    Derive a configclass from it to use a layer of your own.
    """

    @abc.abstractmethod
    def build(self, width: int, precision: Precision, name: str) -> nn.Module:
        """A module that is called with (x [B, T, D], context) and returns (y [B, T, D], report).

        The report is that of a layer of experts (layers/ffn/routing_statistics.py), and None of other layers.

        Args:
          width: D, the size of the residual stream.
          name: of the module in the block.
        """

    @abc.abstractmethod
    def parameters(self, width: int) -> int:
        """Number of parameters."""

    def active_parameters(self, width: int) -> float:
        """Number of parameters that compute a token, in the mean: all, where there are no experts."""
        return self.parameters(width)

    @abc.abstractmethod
    def matrix_flops(self, width: int) -> float:
        """Forward FLOPs per token."""

    @property
    def non_causal(self) -> tuple[str, ...]:
        """Names of its parts that make the result of a token depend on later tokens; empty if it is causal."""
        return ()

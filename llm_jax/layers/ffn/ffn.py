"""The base of feed-forward layers.

Legend: B batch, T length, D model width.
"""

import abc

import flax.linen as nn

from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision


@configclass
class FFN(abc.ABC):
    """A layer that computes each token independently, or sends it to experts.

    To add a layer, derive a configclass from it.
    """

    @abc.abstractmethod
    def build(self, width: int, precision: Precision, name: str) -> nn.Module:
        """A module that is called with (x [B, T, D], context) and returns (y [B, T, D], aux).

        `aux` is the `RoutingAux` of a MoE layer (layers/ffn/routing_statistics.py) and None for other layers.

        Args:
          width: D, the size of the residual stream.
          name: name of the module in the block.
        """

    @abc.abstractmethod
    def parameters(self, width: int) -> int:
        """Number of parameters."""

    def active_parameters(self, width: int) -> float:
        """Mean number of parameters used per token: all of them without experts."""
        return self.parameters(width)

    @abc.abstractmethod
    def matrix_flops(self, width: int) -> float:
        """Forward FLOPs per token."""

    @property
    def non_causal(self) -> tuple[str, ...]:
        """Names of the parts through which a token depends on later tokens; empty if the layer is causal."""
        return ()

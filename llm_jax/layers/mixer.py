"""The base of token mixers: what a block needs of a layer through which tokens read one another.

Legend: B batch, T length, D model width.
"""

import abc
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision


@configclass
class Mixer(abc.ABC):
    """A layer through which tokens read one another: attention or a recurrence.

    A mixer must keep the documents of a sequence apart, and padding must change nothing at real tokens. Positions and
    segment ids are in `context.queries`. Derive a configclass from it to use a mixer of your own.
    """

    @abc.abstractmethod
    def build(self, width: int, precision: Precision, name: str) -> nn.Module:
        """A module that is called with (x [B, T, D], context, state) and returns (y [B, T, D], state).

        Args:
          width: D, the size of the residual stream.
          name: of the module in the block.
        """

    @abc.abstractmethod
    def parameters(self, width: int) -> int:
        """Number of parameters."""

    @abc.abstractmethod
    def matrix_flops(self, width: int) -> float:
        """Forward FLOPs per token of the matrices."""

    @abc.abstractmethod
    def mixing_flops(self, length: int) -> float:
        """Forward FLOPs per token of what depends on the length of the sequence."""

    @abc.abstractmethod
    def allocate(self, batch: int, slots: int, dtype: jnp.dtype) -> Any:
        """An empty state for generation: a KV cache of `slots` tokens, or the state of a recurrence."""

    @property
    @abc.abstractmethod
    def causal(self) -> bool:
        """Whether no token reads a later one."""

    @property
    @abc.abstractmethod
    def shape(self) -> str:
        """Its heads or channels, for summaries."""

"""The base of token mixers.

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
    """A layer that mixes information between tokens: attention or a recurrence.

    A mixer must not mix the documents of a sequence, and padding must not affect real tokens. Positions and segment ids
    are in `context.queries`. To add a mixer, derive a configclass from it.
    """

    @abc.abstractmethod
    def build(self, width: int, precision: Precision, name: str) -> nn.Module:
        """A module that is called with (x [B, T, D], context, state) and returns (y [B, T, D], state).

        Args:
          width: D, the size of the residual stream.
          name: name of the module in the block.
        """

    @abc.abstractmethod
    def parameters(self, width: int) -> int:
        """Number of parameters."""

    @abc.abstractmethod
    def matrix_flops(self, width: int) -> float:
        """Forward FLOPs per token of the matrices."""

    @abc.abstractmethod
    def mixing_flops(self, length: int) -> float:
        """Forward FLOPs per token of the operations between tokens, for sequences of `length` tokens."""

    @abc.abstractmethod
    def allocate(self, batch: int, slots: int, dtype: jnp.dtype) -> Any:
        """An empty state for generation: a KV cache of `slots` positions, or the state of a recurrence. Every array
        has the batch first."""

    @property
    @abc.abstractmethod
    def causal(self) -> bool:
        """Whether the mixer is causal."""

    @property
    @abc.abstractmethod
    def shape(self) -> str:
        """Its heads or channels, for summaries."""

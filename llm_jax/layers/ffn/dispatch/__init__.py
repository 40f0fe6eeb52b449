"""Dispatch: how tokens are sent to their experts and results combined.

Legend: B batch, T length, D model width.
"""

import abc
from typing import ClassVar

import jax

from llm_jax.core.configclass import configclass
from llm_jax.layers.ffn.experts import Local
from llm_jax.layers.ffn.routing import Choice, Picks, Router, Routes


@configclass
class Dispatch(abc.ABC):
    """How tokens are sent to their experts. To add a dispatch, derive a configclass from it."""

    serves: ClassVar[tuple[type, ...]] = (Choice, Picks)
    """The types of routes that it supports."""

    @abc.abstractmethod
    def run(self, experts: Local, x_BTD: jax.Array, routes: Routes, real_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Computes the tokens of one device.

        Args:
          experts: the experts of this device.
          routes: the experts of the tokens, of a type in `serves`.
          real_BT: bool, which tokens are not padding. Padding uses no capacity and gets 0.

        Returns:
          y [B, T, D] in the dtype of x, and the number of each token's choices, or of the picks of it, that were
          served, float32 [B, T].
        """

    @property
    def causal(self) -> bool:
        """Whether the service of a token, at least of its first choice, is independent of later tokens."""
        return True

    def check(self, router: Router) -> None:
        """Raises ValueError if the dispatch does not support the router."""

    def check_rows(self, length: int, parts: int) -> None:
        """Raises ValueError if the dispatch does not support sequences of `length` tokens in `parts` shards, one per
        device."""

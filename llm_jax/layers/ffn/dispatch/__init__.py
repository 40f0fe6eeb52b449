"""How tokens come to their experts, and results back.

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
    """How tokens come to their experts. Derive a configclass from it to use one of your own."""

    serves: ClassVar[tuple[type, ...]] = (Choice, Picks)
    """The kinds of routes that it knows."""

    @abc.abstractmethod
    def run(self, experts: Local, x_BTD: jax.Array, routes: Routes, real_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Computes the tokens of one device, which calls it with its own.

        Args:
          experts: what computes rows of tokens.
          routes: the experts of the tokens; of a kind that it serves.
          real_BT: bool, which tokens are not padding: padding takes no place, and gets 0.

        Returns:
          y [B, T, D] in the type of x, and how many of each token's choices, or of the picks of it, were served,
          float32 [B, T].
        """

    @property
    def causal(self) -> bool:
        """Whether no token's place depends on a later token, that of its first choice at least."""
        return True

    def check(self, router: Router) -> None:
        """It can serve the router. Raises ValueError if it cannot."""

    def check_rows(self, length: int, parts: int) -> None:
        """It can serve sequences of `length` tokens that lie in `parts` shards on as many devices. Raises ValueError if
        it cannot."""

"""How tokens come to their experts, and results back.

A dispatch is a config type, a `Dispatch`. It has `run(experts, x_BTD, routes, real_BT)`, which one device calls with
its own tokens; `serves`, the kinds of routes that it knows; `causal`; `check(router)` and `check_rows(length, parts)`,
which raise ValueError where a router or rows do not fit. `run` is given

  experts: `Local`, what computes rows of tokens.
  x_BTD: its tokens.
  routes: one of the kinds that it serves: their experts.
  real_BT: bool, which of them are no padding: those that are take no place, and get 0.

It returns y [B, T, D] in the type of x, and how many of each token's choices, or of the picks of it, were served,
float32 [B, T].
"""

from typing import ClassVar

from llm_jax.layers.ffn.routing import Choice, Picks, Router


class Dispatch:
    """What holds of a dispatch unless its config says otherwise."""

    serves: ClassVar[tuple[type, ...]] = (Choice, Picks)
    """The kinds of routes that it knows."""

    @property
    def causal(self) -> bool:
        """Whether no token's place depends on a later one's, first choices at least."""
        return True

    def check(self, router: Router) -> None:
        """Any router of such routes will do."""

    def check_rows(self, length: int, parts: int) -> None:
        """Rows of any number of tokens will do, in any number of parts on as many devices."""

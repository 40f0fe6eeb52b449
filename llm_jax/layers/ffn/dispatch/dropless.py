"""Dropless dispatch: every expert computes all tokens that chose it, and no others.

Legend: B batch, T length, D model width, E experts, K choices of a token, P choices of all tokens.
"""

import jax
import jax.numpy as jnp

from llm_jax.core.checks import check_positive
from llm_jax.core.configclass import configclass
from llm_jax.layers.ffn.dispatch import Dispatch, picked
from llm_jax.layers.ffn.dispatch import expert_rows as rows
from llm_jax.layers.ffn.experts import Local
from llm_jax.layers.ffn.routing import Choice, Picks, Routes, served


@configclass
class Dropless(Dispatch):
    """Choices sorted by expert, then grouped matrix products (Gale et al. 2022, arXiv:2211.15841, section 4).

    Memory is proportional to the number of choices, K rows per token, and does not depend on the number of experts.
    """

    windows: int = 4
    """With experts sharded over devices, number of windows into which a device's share of all choices is divided for
    the chunked all-to-all (chunked_all_to_all.py). More windows need less memory and compute fewer empty rows, at most
    one window of them, but have smaller products."""

    def __post_init__(self):
        check_positive(windows=self.windows)

    def run(self, experts: Local, x_BTD: jax.Array, routes: Routes, real_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See dispatch.__init__."""
        if isinstance(routes, Picks):
            return picked.serve(experts, x_BTD, routes, real_BT)
        choice = served(routes, Choice)
        weights_BTK = choice.weights_BTK * real_BT[..., None]
        served_BTK = weights_BTK > 0
        # Choices of weight 0 get the number past the last expert: they are sorted last, and no expert computes them.
        chosen_RK, weights_RK, served_RK = (
            x.reshape(real_BT.size, -1)
            for x in (jnp.where(served_BTK, choice.experts_BTK, experts.count), weights_BTK, served_BTK)
        )
        order_1P, place_1P, sizes_1E = rows.ordered(chosen_RK.reshape(1, -1), experts.count)
        used_P = jnp.arange(chosen_RK.size) < jnp.sum(sizes_1E)
        plan = rows.ExpertRows(order_1P[0], used_P, place_1P.reshape(chosen_RK.shape), served_RK)
        rows_PD, weights_P = plan.tokens(x_BTD.reshape(-1, x_BTD.shape[-1])), plan.weights(weights_RK)
        y_RD = plan.sums(experts.ragged(rows_PD, weights_P, sizes_1E[0], self.windows))
        return y_RD.reshape(x_BTD.shape), jnp.sum(served_BTK, axis=-1, dtype=jnp.float32)

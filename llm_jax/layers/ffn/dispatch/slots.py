"""Dispatch of soft assignments: experts compute weighted means of tokens.

Legend: B batch, T length, D model width, E experts, S slots of an expert.
"""

import jax
import jax.numpy as jnp

from llm_jax.core.configclass import configclass
from llm_jax.layers.ffn.dispatch import Dispatch
from llm_jax.layers.ffn.experts import Local
from llm_jax.layers.ffn.routing import Routes, SoftAssignment, load, served


@configclass
class Slots(Dispatch):
    """Every expert computes its slots of each sequence (Puigcerver et al. 2023, arXiv:2308.00951, algorithm 1)."""

    serves = (SoftAssignment,)

    def run(self, experts: Local, x_BTD: jax.Array, routes: Routes, real_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See dispatch.__init__."""
        mixture = served(routes, SoftAssignment)
        dispatch_BTES = mixture.dispatch_BTES.astype(x_BTD.dtype)
        slots_EBSD = jnp.einsum("BTES,BTD->EBSD", dispatch_BTES, jnp.where(real_BT[..., None], x_BTD, 0))
        y_ERD = experts.batched(slots_EBSD.reshape(experts.count, -1, x_BTD.shape[-1]))
        y_BTD = jnp.einsum("BTES,EBSD->BTD", mixture.combine_BTES.astype(y_ERD.dtype), y_ERD.reshape(slots_EBSD.shape))
        return y_BTD, jnp.sum(load(routes, experts.count, real_BT), axis=-1)

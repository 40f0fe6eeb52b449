"""Router logits, and their noise in training.

Legend: B batch, T length, D model width, E experts.
"""

from typing import Any

import flax.linen as nn
import jax

from llm_jax.core.checks import check, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.initialisers import Init, Zero
from llm_jax.layers.linear import LinearLayer
from llm_jax.layers.roles import Role
from llm_jax.sharding import axes


@configclass
class Jitter:
    """The router input is multiplied by uniform random numbers from 1 - amount to 1 + amount (Fedus et al. 2021,
    arXiv:2101.03961, table 11 of the appendix: 0.01)."""

    amount: float = 0.01

    def __post_init__(self):
        check_positive(amount=self.amount)
        check(self.amount < 1, f"noise.amount is {self.amount}: it must be less than 1")

    def parameters(self, width: int, experts: int) -> int:
        return 0


@configclass
class Noisy:
    """Gaussian noise with standard deviation softplus(x W) is added to the logits (Shazeer et al. 2017,
    arXiv:1701.06538, eq. 4). W is initialised to zero, so the initial deviation is log 2, as in the paper (appendix A).
    The paper also initialises the scores to zero; here the router's `init` draws them, small beside the noise."""

    def parameters(self, width: int, experts: int) -> int:
        return width * experts


Noise = Jitter | Noisy


class Scoring(nn.Module):
    """A router with learned scores: x [B, T, D] -> Routed.

    Its config must have a field `init`.
    """

    config: Any
    width: int
    experts: int
    precision: Precision

    def logits(self, x_BTD: jax.Array, bias: bool = False, noise: Noise | None = None) -> jax.Array:
        """x W [B, T, E] in float32 in every precision, because discrete choices depend on it (Fedus et al. 2021,
        arXiv:2101.03961, 2.4). Noise is added if there is a random key for dropout."""
        training = self.has_rng("dropout")
        x_BTD = x_BTD.astype("float32")
        if isinstance(noise, Jitter) and training:
            key, low, high = self.make_rng("dropout"), 1 - noise.amount, 1 + noise.amount
            x_BTD *= jax.random.uniform(key, x_BTD.shape, minval=low, maxval=high)
        logits_BTE = self.matrix("scores", self.experts, bias)(x_BTD)
        if isinstance(noise, Noisy):
            # Computed in evaluation too: parameters must not depend on the mode in which the model is initialised.
            deviation_BTE = jax.nn.softplus(self.matrix("noise", self.experts, init=Zero())(x_BTD))
            if training:
                logits_BTE += deviation_BTE * jax.random.normal(self.make_rng("dropout"), logits_BTE.shape)
        return logits_BTE

    def matrix(self, name: str, scores: int, bias: bool = False, init: Init | None = None) -> LinearLayer:
        """x [B, T, D] -> `scores` scores of each token, in float32. `init` None: the initialiser of the config."""
        shape, logical_axes = (self.width, scores), (axes.EMBED, axes.ROUTES)
        exact = Precision(self.precision.params, "float32")
        drawn = self.config.init if init is None else init
        return LinearLayer(
            "BTD,DE->BTE", shape, logical_axes, drawn, exact, bias, role=Role.ROUTER, exact=True, name=name
        )

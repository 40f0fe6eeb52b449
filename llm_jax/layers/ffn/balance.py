"""Load balancing of experts: balance losses and bias updates.

A balance loss is a config type with a weight. A loss per sequence has `loss(routed, load_BTE, real_BT)`, which returns
a float32 loss for each sequence [B]. A loss over the batch, a `BatchLoss`, has `sums(routed, load_BTE, real_BT)`, which
returns float32 sums over tokens, and `of(sums)`, the loss of a batch with these sums. Sums of microbatches, devices and
replicas of a pipeline are added before the loss is computed. A layer adds its weighted losses. An objective weights the
loss of a sequence, or of the batch, by its number of targets. `check(router)` raises ValueError if a router does not
return what a loss requires.

Legend: B batch, T length, E experts, K choices of a token.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.checks import check, check_not_negative
from llm_jax.core.configclass import configclass
from llm_jax.layers.ffn.routing import Choice, Routed, Router, load
from llm_jax.layers.ffn.routing_statistics import BatchLosses, RoutingAux, RoutingStatistics, Sums

Array = jax.Array | np.ndarray


class _Loss:
    """Base of the balance losses."""

    weight: float

    def __post_init__(self):
        check_not_negative(weight=self.weight)

    def check(self, router: Router) -> None:
        """
        Raises:
          ValueError: if the router is not a token-choice router with scores.
        """
        check(
            router.routes is Choice and router.scored,
            f"balance has a {type(self).__name__} and router is {type(router).__name__}, which has no scores for "
            "token choice: remove the loss",
        )


class BatchLoss(_Loss):
    """A loss over all tokens of a batch."""

    def sums(self, routed: Routed, load_BTE: jax.Array, real_BT: jax.Array) -> Sums:
        """Differentiable sums over tokens, float32."""
        raise NotImplementedError

    def of(self, sums: Sums) -> Array:
        """The loss [...] of a batch with these sums [..., X], which are JAX arrays or, on the host, NumPy arrays."""
        raise NotImplementedError


@configclass
class LoadLoss(BatchLoss):
    """E * sum over experts of (fraction of the choices) * (mean fraction of the scores) over the batch: 1 where either
    is uniform (Fedus et al. 2021, arXiv:2101.03961, eq. 4 to 6).

    GShard's loss (Lepikhin et al. 2020, arXiv:2006.16668, algorithm 1) is a mean without the factor E: 1 / E^2 of this
    one, with an unpublished coefficient. Losses that count the K choices of a token without dividing by K, as in
    transformers, are K times this one with `first` False.
    """

    weight: float = 0.01
    """0.01 for each layer in Switch Transformer, and for the mean over layers in OLMoE: see `mean_over`."""
    first: bool = True
    """Whether only the first choice of a token counts, as in Switch and GShard, or all of them."""

    def sums(self, routed: Routed, load_BTE: jax.Array, real_BT: jax.Array) -> Sums:
        """Number of choices of each expert; its scores, normalised per token; number of tokens."""
        if self.first:
            load_BTE = jax.nn.one_hot(routed.choice.experts_BTK[..., 0], load_BTE.shape[-1]) * real_BT[..., None]
        given_E = jnp.sum(shares(routed.scores) * real_BT[..., None], (0, 1))
        return {"load_E": jnp.sum(load_BTE, (0, 1)), "given_E": given_E, "tokens": jnp.sum(real_BT)}

    def of(self, sums: Sums) -> Array:
        """The loss of a batch with these sums."""
        return _evenness(sums["load_E"], sums["given_E"], sums["tokens"])


@configclass
class SequenceLoss(_Loss):
    """LoadLoss with all choices, computed for each sequence separately (DeepSeek-V2, arXiv:2405.04434, eq. 23 to 25;
    DeepSeek-V3, arXiv:2412.19437, eq. 17 to 20). Documents packed into one row count as one sequence."""

    weight: float = 0.0001
    """0.0001 in DeepSeek-V3, 0.003 in DeepSeek-V2."""
    as_chosen: bool = True
    """Whether the load counts the experts that a token chose, as in DeepSeek-V2, or the same number of experts with its
    highest scores before any bias or limit, as in DeepSeek-V3 (eq. 18)."""

    def loss(self, routed: Routed, load_BTE: jax.Array, real_BT: jax.Array) -> jax.Array:
        if not self.as_chosen:
            # The experts that the scores alone would choose. Only the scores have a gradient, not the counts.
            best_BTK = jax.lax.top_k(routed.scores, routed.choice.experts_BTK.shape[-1])[1]
            load_BTE = load(Choice(best_BTK, jnp.ones(best_BTK.shape)), load_BTE.shape[-1], real_BT)
        given_BE = jnp.sum(shares(routed.scores) * real_BT[..., None], 1)
        return jnp.asarray(_evenness(jnp.sum(load_BTE, 1), given_BE, jnp.sum(real_BT, 1)))


@configclass
class ImportanceLoss(BatchLoss):
    """Squared coefficient of variation, over experts, of their summed weights in the batch: 0 where they are equal
    (Shazeer et al. 2017, arXiv:1701.06538, eq. 6 and 7)."""

    weight: float = 0.1

    def sums(self, routed: Routed, load_BTE: jax.Array, real_BT: jax.Array) -> Sums:
        """Sum of the weights of each expert."""
        weights_BTK = routed.choice.weights_BTK * real_BT[..., None]
        return {"given_E": jnp.zeros(load_BTE.shape[-1]).at[routed.choice.experts_BTK].add(weights_BTK)}

    def of(self, sums: Sums) -> Array:
        """The loss of a batch with these sums."""
        given_E = sums["given_E"]
        mean_1 = given_E.mean(-1, keepdims=True)
        # Variance over squared mean. The bound prevents a division by zero where the batch has no weights.
        return ((given_E - mean_1) ** 2).mean(-1) / (mean_1[..., 0] ** 2).clip(1e-10)


@configclass
class ZLoss(_Loss):
    """Mean over the tokens of a sequence of log(sum(exp(logits)))^2, which keeps logits small (Zoph et al. 2022,
    arXiv:2202.08906, eq. 5)."""

    weight: float = 0.001

    def check(self, router: Router) -> None:
        """
        Raises:
          ValueError: if the router has no logits.
        """
        check(
            router.scored,
            f"balance has a ZLoss and router is {type(router).__name__}, which has no logits: remove the loss",
        )

    def loss(self, routed: Routed, load_BTE: jax.Array, real_BT: jax.Array) -> jax.Array:
        squares_BT = jnp.square(jax.nn.logsumexp(routed.logits, axis=-1))
        return jnp.sum(squares_BT * real_BT, axis=1) / jnp.maximum(jnp.sum(real_BT, axis=1), 1)


@configclass
class BiasUpdate:
    """Balancing without a loss: after every step the router's bias for an expert increases by `rate` if its load was
    below the mean of the batch, and decreases if it was above (Wang et al. 2024, arXiv:2408.15664, algorithm 1;
    DeepSeek-V3, arXiv:2412.19437, 2.1.2). The load is that of the whole batch, over all microbatches and devices."""

    rate: float = 0.001

    def __post_init__(self):
        check_not_negative(rate=self.rate)

    def check(self, router: Router) -> None:
        """
        Raises:
          ValueError: if the router has no bias for the update.
        """
        check(
            router.has_bias,
            f"balance has a BiasUpdate and router is {type(router).__name__} without a correction bias: set the "
            "router to SigmoidConfig with corrected=True, or remove the update",
        )


Balance = LoadLoss | SequenceLoss | ImportanceLoss | ZLoss | BiasUpdate


def check_balance(balance: tuple[Balance, ...], router: Router) -> None:
    """Checks losses and bias updates.

    Raises:
      ValueError: if one does not fit the router, or if the router has a bias and there is no BiasUpdate.
    """
    check(isinstance(balance, tuple), f"balance is {balance}: it must be a tuple, such as (LoadLoss(0.01),)")
    for one in balance:
        one.check(router)
    updates = sum(isinstance(one, BiasUpdate) for one in balance)
    check(updates <= 1, f"balance has {updates} BiasUpdate: at most one is supported; remove the others")
    check(
        updates > 0 or not router.has_bias,
        f"router is {type(router).__name__} with corrected=True and balance has no BiasUpdate, which updates the "
        "bias: add BiasUpdate() to balance, or set corrected=False",
    )


def mean_over(layers: int, *losses: LoadLoss | SequenceLoss | ImportanceLoss | ZLoss) -> tuple[Balance, ...]:
    """The losses with weights divided by `layers`, because losses of layers are summed and the given weights are for
    the mean over `layers` MoE layers. Losses of weight 0 are removed."""
    return tuple(dataclasses.replace(loss, weight=loss.weight / layers) for loss in losses if loss.weight)


def report(
    balance: tuple[Balance, ...], routed: Routed, experts: int, served_BT: jax.Array, real_BT: jax.Array
) -> RoutingAux:
    """Balance losses and routing statistics of a layer. `served_BT`: number of served choices of each token."""
    real_BT = real_BT.astype(jnp.float32)
    load_BTE = load(routed.routes, experts, real_BT)
    losses = [b for b in balance if not isinstance(b, BiasUpdate)]
    of_rows = [b.weight * b.loss(routed, load_BTE, real_BT) for b in losses if not isinstance(b, BatchLoss)]
    of_batch = tuple(b for b in losses if isinstance(b, BatchLoss))
    # Padding counts as no token, whatever the dispatch reports for it.
    served_BT = served_BT * real_BT
    importance_E, entropy = jnp.zeros(experts), jnp.zeros(())
    if routed.scores_BTE is not None:
        shares_BTE = shares(routed.scores_BTE)
        # Sums over tokens, not means: parts of a batch add up to the whole (routing_statistics.py).
        importance_E = jnp.einsum("BTE,BT->E", shares_BTE, real_BT)
        entropy = jnp.sum(jax.scipy.special.entr(shares_BTE) * real_BT[..., None])
    statistics = RoutingStatistics(
        tokens=jnp.sum(real_BT),
        load_E=jnp.sum(load_BTE, (0, 1)),
        importance_E=importance_E,
        entropy=entropy,
        dropped=jnp.sum(jnp.sum(load_BTE, axis=-1) - served_BT),
        unserved=jnp.sum((served_BT == 0) * real_BT),
        rate=next((one.rate for one in balance if isinstance(one, BiasUpdate)), None),
    )
    # Only the losses have gradients.
    sums = BatchLosses(tuple(b.sums(routed, load_BTE, real_BT) for b in of_batch), of_batch)
    return RoutingAux(sum(of_rows, jnp.zeros(real_BT.shape[:1])), sums, jax.lax.stop_gradient(statistics))


def shares(scores_BTE: jax.Array) -> jax.Array:
    """Scores normalised to a sum of one per token."""
    return scores_BTE / jnp.maximum(jnp.sum(scores_BTE, axis=-1, keepdims=True), 1e-20)


def _evenness(load_E: Array, given_E: Array, tokens: Array) -> Array:
    """E * sum over experts of (fraction of the load) * (mean score), [...] from [..., E] and [...]."""
    # f_i and P_i of Fedus et al. 2021, equations 5 and 6.
    share_E = load_E / load_E.sum(-1, keepdims=True).clip(1)
    return load_E.shape[-1] * (share_E * (given_E / tokens.clip(1)[..., None])).sum(-1)

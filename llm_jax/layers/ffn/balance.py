"""What keeps the load of experts even.

A balance loss is a config type with a weight. One of rows has `loss(routed, load_BTE, real_BT)`, which gives a float32
loss for each row [B]. One of the batch, a `BatchLoss`, has `sums(routed, load_BTE, real_BT)`, float32 sums over tokens,
and `of(sums)`, the loss of a batch with such sums: those of microbatches, devices and replicas of a pipeline are added
before the loss is taken. A layer adds losses by their weights, and an objective counts a row's, or the batch's, as
often as it has targets. `check(router)` raises ValueError where a router does not give what a loss needs.

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
    """What balance losses have in common."""

    weight: float

    def __post_init__(self):
        check_not_negative(weight=self.weight)

    def check(self, router: Router) -> None:
        """
        Raises:
          ValueError: for a router by which tokens do not choose from scores of their own.
        """
        check(
            router.routes is Choice and router.scored,
            f"balance has a {type(self).__name__} and router is {type(router).__name__}, which has no scores by which "
            "tokens choose: leave the loss out",
        )


class BatchLoss(_Loss):
    """A loss of all tokens of a batch together."""

    def sums(self, routed: Routed, load_BTE: jax.Array, real_BT: jax.Array) -> Sums:
        """Sums over tokens, which have gradients, float32."""
        raise NotImplementedError

    def of(self, sums: Sums) -> Array:
        """The loss [...] of a batch with these sums [..., X]: arrays of JAX or, on the host, of NumPy."""
        raise NotImplementedError


@configclass
class LoadLoss(BatchLoss):
    """E * sum over experts of (share of choices) * (mean share of the scores) over the batch: 1 where either is even
    (Fedus et al. 2021, arXiv:2101.03961, eq. 4 to 6).

    GShard's (Lepikhin et al. 2020, arXiv:2006.16668, algorithm 1) is the same without the factor, as a mean: 1 / E^2 of
    it, with a coefficient that is not published. Losses that count a token's K choices without dividing by K, as in
    transformers, are K times this one with all of them.
    """

    weight: float = 0.01
    """0.01 in Switch Transformer, in each layer, and in OLMoE in the mean over layers: see `mean_over`."""
    first: bool = True
    """Whether only the first choice of a token counts, as in Switch and GShard, else all of them."""

    def sums(self, routed: Routed, load_BTE: jax.Array, real_BT: jax.Array) -> Sums:
        """Choices of each expert, and scores given to it, each token's adding up to one; tokens."""
        if self.first:
            load_BTE = jax.nn.one_hot(routed.choice.experts_BTK[..., 0], load_BTE.shape[-1]) * real_BT[..., None]
        given_E = jnp.sum(shares(routed.scores) * real_BT[..., None], (0, 1))
        return {"load_E": jnp.sum(load_BTE, (0, 1)), "given_E": given_E, "tokens": jnp.sum(real_BT)}

    def of(self, sums: Sums) -> Array:
        """The loss of a batch with these sums."""
        return _evenness(sums["load_E"], sums["given_E"], sums["tokens"])


@configclass
class SequenceLoss(_Loss):
    """As LoadLoss with all choices, of every row by itself (DeepSeek-V2, arXiv:2405.04434, eq. 23 to 25; DeepSeek-V3,
    arXiv:2412.19437, eq. 17 to 20). Documents packed into one row count as one sequence."""

    weight: float = 0.0001
    """0.0001 in DeepSeek-V3, 0.003 in DeepSeek-V2."""
    as_chosen: bool = True
    """Whether the experts that a token chose count, as in DeepSeek-V2, or as many of its highest scores, before any
    bias or limit, as in DeepSeek-V3 (eq. 18)."""

    def loss(self, routed: Routed, load_BTE: jax.Array, real_BT: jax.Array) -> jax.Array:
        if not self.as_chosen:
            best_BTK = jax.lax.top_k(routed.scores, routed.choice.experts_BTK.shape[-1])[1]
            load_BTE = load(Choice(best_BTK, jnp.ones(best_BTK.shape)), load_BTE.shape[-1], real_BT)
        given_BE = jnp.sum(shares(routed.scores) * real_BT[..., None], 1)
        return jnp.asarray(_evenness(jnp.sum(load_BTE, 1), given_BE, jnp.sum(real_BT, 1)))


@configclass
class ImportanceLoss(BatchLoss):
    """Square of the coefficient of variation over experts of the weights given to them in the batch: 0 where they are
    even (Shazeer et al. 2017, arXiv:1701.06538, eq. 6 and 7)."""

    weight: float = 0.1

    def sums(self, routed: Routed, load_BTE: jax.Array, real_BT: jax.Array) -> Sums:
        """Weights given to each expert."""
        weights_BTK = routed.choice.weights_BTK * real_BT[..., None]
        return {"given_E": jnp.zeros(load_BTE.shape[-1]).at[routed.choice.experts_BTK].add(weights_BTK)}

    def of(self, sums: Sums) -> Array:
        """The loss of a batch with these sums."""
        given_E = sums["given_E"]
        mean_1 = given_E.mean(-1, keepdims=True)
        return ((given_E - mean_1) ** 2).mean(-1) / (mean_1[..., 0] ** 2).clip(1e-10)


@configclass
class ZLoss(_Loss):
    """Mean over the tokens of a row of log(sum(exp(logits)))^2, which keeps logits small (Zoph et al. 2022,
    arXiv:2202.08906, eq. 5)."""

    weight: float = 0.001

    def check(self, router: Router) -> None:
        """
        Raises:
          ValueError: for a router without logits.
        """
        check(
            router.scored,
            f"balance has a ZLoss and router is {type(router).__name__}, which has no logits: leave the loss out",
        )

    def loss(self, routed: Routed, load_BTE: jax.Array, real_BT: jax.Array) -> jax.Array:
        squares_BT = jnp.square(jax.nn.logsumexp(routed.logits, axis=-1))
        return jnp.sum(squares_BT * real_BT, axis=1) / jnp.maximum(jnp.sum(real_BT, axis=1), 1)


@configclass
class BiasUpdate:
    """No loss: after every update the router's bias for an expert rises by `rate` where the expert had less than the
    mean load of the batch, and falls where it had more (Wang et al. 2024, arXiv:2408.15664, algorithm 1; DeepSeek-V3,
    arXiv:2412.19437, 2.1.2). The load is that of the whole batch, over all microbatches and devices."""

    rate: float = 0.001

    def __post_init__(self):
        check_not_negative(rate=self.rate)

    def check(self, router: Router) -> None:
        """
        Raises:
          ValueError: for a router without a bias that it could move.
        """
        check(
            router.has_bias,
            f"balance has a BiasUpdate and router is {type(router).__name__} without a bias that it moves: set the "
            "router to SigmoidConfig with corrected=True, or leave the update out",
        )


Balance = LoadLoss | SequenceLoss | ImportanceLoss | ZLoss | BiasUpdate


def check_balance(balance: tuple[Balance, ...], router: Router) -> None:
    """
    Raises:
      ValueError: for what does not fit the router, or does not balance its bias.
    """
    check(isinstance(balance, tuple), f"balance is {balance}: make it a tuple, such as (LoadLoss(0.01),)")
    for one in balance:
        one.check(router)
    updates = sum(isinstance(one, BiasUpdate) for one in balance)
    check(updates <= 1, f"balance has {updates} BiasUpdate: one moves the router's bias; leave one")
    check(
        updates > 0 or not router.has_bias,
        f"router is {type(router).__name__} with corrected=True and balance has no BiasUpdate: nothing would ever move "
        "the bias; add BiasUpdate() to balance, or set corrected=False",
    )


def mean_over(layers: int, *losses: LoadLoss | SequenceLoss | ImportanceLoss | ZLoss) -> tuple[Balance, ...]:
    """These losses for a model in which their weights are those of a mean over so many layers of experts: losses of
    layers are added up. A loss of weight 0 is left out."""
    return tuple(dataclasses.replace(loss, weight=loss.weight / layers) for loss in losses if loss.weight)


def report(
    balance: tuple[Balance, ...], routed: Routed, experts: int, served_BT: jax.Array, real_BT: jax.Array
) -> RoutingAux:
    """What a layer tells of its tokens, which it served so many choices each."""
    real_BT = real_BT.astype(jnp.float32)
    load_BTE = load(routed.routes, experts, real_BT)
    losses = [b for b in balance if not isinstance(b, BiasUpdate)]
    of_rows = [b.weight * b.loss(routed, load_BTE, real_BT) for b in losses if not isinstance(b, BatchLoss)]
    of_batch = tuple(b for b in losses if isinstance(b, BatchLoss))
    served_BT = served_BT * real_BT
    importance_E, entropy = jnp.zeros(experts), jnp.zeros(())
    if routed.scores_BTE is not None:
        shares_BTE = shares(routed.scores_BTE)
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
    # Only the losses are to be followed back.
    sums = BatchLosses(tuple(b.sums(routed, load_BTE, real_BT) for b in of_batch), of_batch)
    return RoutingAux(sum(of_rows, jnp.zeros(real_BT.shape[:1])), sums, jax.lax.stop_gradient(statistics))


def shares(scores_BTE: jax.Array) -> jax.Array:
    """Scores of which each token's add up to one."""
    return scores_BTE / jnp.maximum(jnp.sum(scores_BTE, axis=-1, keepdims=True), 1e-20)


def _evenness(load_E: Array, given_E: Array, tokens: Array) -> Array:
    """E * sum over experts of (share of the load) * (mean of the shares given), [...] of [..., E] and [...]."""
    share_E = load_E / load_E.sum(-1, keepdims=True).clip(1)
    return load_E.shape[-1] * (share_E * (given_E / tokens.clip(1)[..., None])).sum(-1)

"""Balance losses are the papers' formulas, and so are their gradients; what cannot be balanced is refused.

Legend: B batch, T length, E experts, K choices of a token.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.dtypes import Precision
from llm_jax.layers.ffn.balance import BatchLoss, BiasUpdate, ImportanceLoss, LoadLoss, SequenceLoss, ZLoss, report
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.expert_choice import ExpertChoiceConfig
from llm_jax.layers.ffn.routers.fixed import HashConfig, RandomConfig
from llm_jax.layers.ffn.routers.groups import GroupLimit
from llm_jax.layers.ffn.routers.token_choice import SigmoidConfig, SoftmaxConfig
from llm_jax.layers.ffn.routing import Choice, Routed, load
from tests.helpers import routing

LOGITS = routing.random_logits(3, 8, 4)
REAL = np.arange(8)[None] < np.array([[8], [5], [1]])
SOFTMAX, SIGMOID = SoftmaxConfig(2), SigmoidConfig(2, corrected=False)


def _rows(values_BT):
    return [values_BT[row][REAL[row]] for row in range(3)]


def _scores(router, logits):
    return routing.softmax(logits) if router == SOFTMAX else routing.sigmoid(logits)


def _switch(router, logits):
    """Eq. 4 to 6 of Switch Transformer, token by token."""
    scores, counts, given, tokens = _scores(router, logits), np.zeros(4), np.zeros(4), REAL.sum()
    for row, place in np.argwhere(REAL):
        counts[np.argmax(scores[row, place])] += 1
        given += scores[row, place] / scores[row, place].sum()
    return np.full(3, 4 * np.sum(counts / tokens * given / tokens))


def _all_choices(router, logits):
    scores, counts, given, tokens = _scores(router, logits), np.zeros(4), np.zeros(4), REAL.sum()
    for row, place in np.argwhere(REAL):
        counts[np.argsort(scores[row, place])[-2:]] += 1
        given += scores[row, place] / scores[row, place].sum()
    return np.full(3, 4 * np.sum(counts / (2 * tokens) * given / tokens))


def _sequence(router, logits):
    """Eq. 17 to 20 of DeepSeek-V3."""
    found = []
    for scores in _rows(_scores(router, logits)):
        chosen = np.array([np.isin(range(4), np.argsort(token)[-2:]) for token in scores])
        f = 4 / (2 * len(scores)) * chosen.sum(0)
        p = (scores / scores.sum(1, keepdims=True)).mean(0)
        found.append(np.sum(f * p))
    return np.array(found)


def _importance(router, logits):
    """Eq. 6 and 7 of Shazeer et al.: CV^2 of the sums of gates."""
    scores, gates = _scores(router, logits), np.zeros(4)
    for row, place in np.argwhere(REAL):
        chosen = np.argsort(scores[row, place])[-2:]
        gates[chosen] += scores[row, place][chosen] / scores[row, place][chosen].sum()
    return np.full(3, (gates.std() / gates.mean()) ** 2)


def _z(router, logits):
    return np.array([np.mean(np.log(np.exp(rows).sum(1)) ** 2) for rows in _rows(logits)])


LOSSES = {
    "switch": (LoadLoss(), _switch),
    "all choices": (LoadLoss(first=False), _all_choices),
    "sequence": (SequenceLoss(), _sequence),
    "importance": (ImportanceLoss(), _importance),
    "z": (ZLoss(), _z),
}


def _loss(loss, router):
    def run(logits):
        own = {"params": {"scores": {"kernel": jnp.eye(4)}}}
        routed = router.build(4, 4, Precision(), "router").apply(own, logits, routing.context(REAL))
        real = jnp.asarray(REAL, jnp.float32)
        load_BTE = load(routed.routes, 4, real)
        if not isinstance(loss, BatchLoss):
            return loss.loss(routed, load_BTE, real)
        return jnp.broadcast_to(loss.of(loss.sums(routed, load_BTE, real)), (3,))

    return run


@pytest.mark.parametrize("router", [SOFTMAX, SIGMOID], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_formula_and_its_gradient_the_formulas(name, router):
    loss, formula = LOSSES[name]
    run = _loss(loss, router)
    weights = np.array([1.0, -0.5, 2.0])
    value = jax.jit(lambda logits: (run(logits), jax.grad(lambda x: jnp.sum(run(x) * weights))(logits)))
    found, gradient = value(jnp.asarray(LOGITS))
    np.testing.assert_allclose(found, formula(router, LOGITS), rtol=1e-5)
    # By differences of the formula in double precision; choices do not change within a step.
    expected, logits, step = np.zeros(LOGITS.shape), LOGITS.astype(np.float64), 1e-5
    for place in np.ndindex(*LOGITS.shape):
        values = []
        for sign in (1, -1):
            moved = logits.copy()
            moved[place] += sign * step
            values.append(np.sum(formula(router, moved) * weights))
        expected[place] = (values[0] - values[1]) / (2 * step)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=2e-6)
    assert not np.asarray(gradient)[~REAL].any()


def test_gshards_loss_is_switchs_by_the_square_of_the_experts():
    # Algorithm 1: l_aux = mean over experts of (share of tokens whose first choice it is) * (mean gate).
    gates = routing.softmax(LOGITS)[REAL]
    shares = np.bincount(gates.argmax(1), minlength=4) / len(gates)
    auxiliary = np.mean(shares * gates.mean(0))
    np.testing.assert_allclose(_loss(LoadLoss(), SOFTMAX)(jnp.asarray(LOGITS))[0] / 16, auxiliary, rtol=1e-5)


def test_even_load_costs_one_and_collapse_costs_as_many_as_experts():
    even = np.tile(8 * np.eye(4, dtype=np.float32), (3, 2, 1))
    one = np.zeros((3, 8, 4), np.float32)
    one[..., 0] = 20
    for loss in (LoadLoss(), SequenceLoss()):
        run = _loss(loss, SoftmaxConfig(1))
        np.testing.assert_allclose(run(jnp.asarray(one)), 4, rtol=1e-5)
    np.testing.assert_allclose(_loss(SequenceLoss(), SoftmaxConfig(1))(jnp.asarray(even))[0], 1, rtol=1e-3)


@pytest.mark.parametrize("router", [SoftmaxConfig(2), SigmoidConfig(2), ExpertChoiceConfig(2), RandomConfig(2)])
def test_a_report_adds_up_what_was_done_with_real_tokens(router):
    own = {"scores": {"kernel": np.eye(4, dtype=np.float32)}, "bias": np.zeros(4, np.float32)}
    routed = router.build(4, 4, Precision(), "r").apply({"params": own}, LOGITS, routing.context(REAL))
    visited = np.asarray(load(routed.routes, 4, jnp.asarray(REAL, jnp.float32)))
    served = visited.sum(-1)
    served[0, 0], dropped = 0, served[0, 0]
    statistics = report((), routed, 4, jnp.asarray(served), jnp.asarray(REAL)).statistics
    np.testing.assert_array_equal(statistics.load_E, visited.sum((0, 1)))
    assert (statistics.tokens, statistics.dropped) == (REAL.sum(), dropped)
    assert statistics.unserved == (served[REAL] == 0).sum() and statistics.rate is None
    if routed.scores_BTE is None:
        assert not statistics.importance_E.any() and statistics.entropy == 0
    else:
        shares = np.asarray(routed.scores_BTE / routed.scores_BTE.sum(-1, keepdims=True))[REAL]
        np.testing.assert_allclose(statistics.importance_E, shares.sum(0), rtol=1e-5)
        np.testing.assert_allclose(statistics.entropy, -np.sum(shares * np.log(shares)), rtol=1e-5)


def test_only_losses_are_followed_back_and_by_their_weights():
    own = {"params": {"scores": {"kernel": jnp.eye(4)}}}
    router = SOFTMAX.build(4, 4, Precision(), "router")

    def total(logits, balance):
        routed = router.apply(own, logits, routing.context(REAL))
        found = report(balance, routed, 4, load(routed.routes, 4, REAL * 1.0).sum(-1), jnp.asarray(REAL))
        return jnp.sum(found.loss_B) + found.batch.total + sum(map(jnp.sum, jax.tree.leaves(found.statistics)))

    for kind in (ZLoss, LoadLoss):
        of = jax.grad(lambda logits, weight: total(logits, (kind(weight),)))  # noqa: B023
        assert not of(jnp.asarray(LOGITS), 0.0).any()
        np.testing.assert_allclose(of(jnp.asarray(LOGITS), 3.0), 3 * of(jnp.asarray(LOGITS), 1.0), rtol=1e-5)


def _moe(router, *balance):
    return MoEConfig(4, GLUConfig(8), router, balance=balance)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: _moe(SigmoidConfig(2)), "balance has no BiasUpdate, .* add BiasUpdate\\(\\) to balance, or set corr"),
        (lambda: _moe(SOFTMAX, BiasUpdate()), "BiasUpdate and router is SoftmaxConfig without a correction bias"),
        (lambda: _moe(SIGMOID, BiasUpdate()), "set the router to SigmoidConfig with corrected=True"),
        (lambda: _moe(SigmoidConfig(2), BiasUpdate(), BiasUpdate()), "balance has 2 BiasUpdate"),
        (lambda: _moe(HashConfig(1), LoadLoss()), "has a LoadLoss and router is HashConfig, which has no scores"),
        (lambda: _moe(RandomConfig(1), ZLoss()), "has a ZLoss and router is RandomConfig, which has no logits"),
        (lambda: _moe(ExpertChoiceConfig(1), SequenceLoss()), "has a SequenceLoss and router is ExpertChoiceConfig"),
        (lambda: _moe(SoftmaxConfig(5)), "router.top is 5 and there are 4 experts"),
        (lambda: _moe(SoftmaxConfig(2, limit=GroupLimit(3, 2))), "limit.groups must divide count"),
        (lambda: LoadLoss(-1.0), "weight is -1.0"),
        (lambda: BiasUpdate(-1.0), "rate is -1.0"),
    ],
)
def test_what_does_not_fit_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_what_fits_is_built():
    _moe(SigmoidConfig(2), BiasUpdate(), SequenceLoss(), ZLoss())
    _moe(ExpertChoiceConfig(2), ZLoss())
    assert not dataclasses.replace(_moe(SOFTMAX), balance=(LoadLoss(), ImportanceLoss())).non_causal


def test_a_loss_of_rows_may_count_the_best_scores_instead_of_what_a_bias_chose():
    """DeepSeek-V3, eq. 18: the bias decides who serves a token, and not what is evened out."""
    scores_BTE = jnp.asarray([[[0.9, 0.5, 0.2, 0.1], [0.6, 0.8, 0.1, 0.3]]])
    chosen = Routed(Choice(jnp.asarray([[[3], [3]]]), jnp.ones((1, 2, 1))), scores_BTE, scores_BTE)
    real_BT = jnp.ones((1, 2))
    shares_BTE = np.asarray(scores_BTE / scores_BTE.sum(-1, keepdims=True))
    mean_E = shares_BTE.mean((0, 1))
    load_BTE = load(chosen.routes, 4, real_BT)
    np.testing.assert_allclose(SequenceLoss().loss(chosen, load_BTE, real_BT), [4 * mean_E[3]], rtol=1e-6)
    told = SequenceLoss(as_chosen=False).loss(chosen, load_BTE, real_BT)
    np.testing.assert_allclose(told, [4 * (mean_E[0] + mean_E[1]) / 2], rtol=1e-6)

"""Layers become segments."""

import dataclasses

import jax
import numpy as np
import pytest

from llm_jax.layers.ffn.balance import BiasUpdate
from llm_jax.layers.ffn.dispatch.capacity import Capacity
from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.fixed import HashConfig
from llm_jax.layers.ffn.routers.token_choice import SigmoidConfig, SoftmaxConfig
from llm_jax.models.build import build
from llm_jax.models.families.albert import albert
from llm_jax.models.families.decoder import segments, with_experts
from llm_jax.models.families.llama import llama
from llm_jax.models.stack import Segment
from tests.helpers import tiny

A = tiny.tiny_gpt2().segments[0].blocks[0]
B = tiny.tiny_llama().segments[0].blocks[0]


def test_the_shortest_group_is_repeated():
    assert segments((A,)) == (Segment((A,), 1),)
    assert segments((A, A, A)) == (Segment((A,), 3),)
    assert segments((A, B, A, B)) == (Segment((A, B), 2),)


def test_what_is_left_over_is_a_segment():
    assert segments((A, A, B, A, A, B, A, A)) == (Segment((A, A, B), 2), Segment((A, A), 1))


def test_where_no_group_repeats_runs_do():
    assert segments((A, A, B)) == (Segment((A,), 2), Segment((B,), 1))
    assert segments((A, B)) == (Segment((A,), 1), Segment((B,), 1))


def test_experts_take_the_place_of_the_ffn_of_some_layers():
    dense, experts = llama(5, 2, 8, hidden=12), MoEConfig(4, GLUConfig(6), SoftmaxConfig(2))
    (block,) = dense.segments[0].blocks
    mixed = dataclasses.replace(block, ffn=experts)
    assert with_experts(dense, experts).segments == (Segment((mixed,), 5),)
    assert with_experts(dense, experts, [1, 3]).segments == (Segment((block, mixed), 2), Segment((block,), 1))
    assert with_experts(dense, experts, [2, 3, 4]).segments == (Segment((block,), 2), Segment((mixed,), 3))
    assert with_experts(dense, experts, []) == dense


ROUTED = {
    "softmax": (SoftmaxConfig(2), Dropless(), True),
    "sigmoid with bias": (SigmoidConfig(2), Dropless(), True),
    "hash": (HashConfig(2), Dropless(), True),
    "places by position": (SoftmaxConfig(1, normalized=False), Capacity(0.5), True),
    "places by score": (SoftmaxConfig(1, normalized=False), Capacity(0.5, "score"), False),
}


@pytest.mark.parametrize(("router", "dispatch", "causal"), ROUTED.values(), ids=ROUTED)
def test_later_tokens_leave_earlier_logits_alone_but_where_priority_is_by_score(router, dispatch, causal):
    balance = (BiasUpdate(),) if router.has_bias else ()
    experts = MoEConfig(4, GLUConfig(6), router, dispatch, balance)
    model, length, kept = build(with_experts(tiny.tiny_llama(2), experts)), 16, 9
    params, tokens = tiny.parameters(model), tiny.tokens(4, length)
    run = jax.jit(lambda tokens: model.apply({"params": params}, tokens))
    later = np.where(np.arange(length) < kept, tokens, (tokens + 7) % tiny.VOCAB)
    one, other = run(tokens), run(later)
    dropped = [np.asarray(report.statistics.dropped) for report in one.aux.values()]
    assert (np.concatenate(dropped) > 0).all() == isinstance(dispatch, Capacity)
    difference = np.abs(np.asarray(one.logits_BTV) - other.logits_BTV).max((0, 2))
    assert (difference[kept:] > 1e-2).all()
    assert (difference[:kept] < 1e-5).all() == causal


def test_layers_that_cannot_have_experts_are_refused():
    experts = MoEConfig(4, GLUConfig(6), SoftmaxConfig(2))
    with pytest.raises(ValueError, match=r"layers are \[5\] and the model has 5: use numbers from 0 to 4"):
        with_experts(llama(5, 2, 8, hidden=12), experts, [5])
    with pytest.raises(ValueError, match="share their weights"):
        with_experts(albert(2, 2, 8), experts)

"""Beam search finds what enumeration finds if it is wide enough, and what transformers finds if it is not."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.inference.beam import Beams, BeamSearch, Hypothesis, advanced
from llm_jax.inference.beam_config import BeamConfig
from llm_jax.inference.generate import Generator
from llm_jax.inference.sampling import SamplingConfig
from llm_jax.layers.attention.masks import PrefixCausal
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.build import build
from llm_jax.models.families.llama import llama
from llm_jax.models.families.t5 import t5
from llm_jax.models.inputs import Inputs
from tests.helpers import tiny
from tests.helpers.published import PUBLISHED

WORDS, EOS, PAD, NEW = 4, 2, 0, 4
SMALL = {"heads": 2, "width": 8, "hidden": 8, "vocab_size": WORDS, "max_length": 16}
CONFIGS = {"decoder": llama(1, **SMALL), "encoder-decoder": t5(1, **SMALL, head_dim=4, buckets=8, max_distance=12)}
STARTS = {"decoder": (), "encoder-decoder": (0,)}
PROMPTS = [[1], [3, 1, 3], [1, 3, 3, 1, 0]]


@functools.cache
def _model(kind: str) -> tuple[Any, Any]:
    model = build(CONFIGS[kind])
    return model, tiny.parameters(model, seed=4)


def _search(kind: str, config: BeamConfig, new_tokens: int = NEW) -> list[list[Hypothesis]]:
    model, params = _model(kind)
    return BeamSearch(model, config, EOS, PAD, start=STARTS[kind]).search(params, PROMPTS, new_tokens)


def _endings() -> list[tuple[int, ...]]:
    """Every sequence that ends with eos or has all new tokens, eos included."""
    words = [word for word in range(WORDS) if word != EOS]
    ended = [(*row, EOS) for count in range(NEW) for row in itertools.product(words, repeat=count)]
    return ended + list(itertools.product(words, repeat=NEW))


@functools.cache
def _sums(kind: str) -> list[np.ndarray]:
    """For each prompt the log-probability of each of `_endings`, from a forward pass without a cache."""
    model, params = _model(kind)
    endings, found = _endings(), []
    for prompt in PROMPTS:
        before = list(STARTS[kind] or prompt)
        rows = np.array([before + list(row) + [0] * (NEW - len(row)) for row in endings], np.int32)
        source = Inputs(np.tile(np.array([prompt], np.int32), (len(rows), 1))) if STARTS[kind] else None
        log_p = jax.nn.log_softmax(model.apply({"params": params}, Inputs(rows, encoder=source)).logits_BTV)
        at = len(before) - 1
        found.append(
            np.array([sum(log_p[n, at + t, word] for t, word in enumerate(row)) for n, row in enumerate(endings)])
        )
    return found


WIDE = 128
"""More beams than there are sequences."""


@pytest.mark.parametrize(
    ("kind", "penalty", "offset"), [("decoder", 1.0, 0.0), ("encoder-decoder", 0.6, 5.0), ("decoder", -2.0, 0.0)]
)
def test_a_wide_search_is_enumeration(kind, penalty, offset):
    config = BeamConfig(WIDE, length_penalty=penalty, length_offset=offset, n_best=WIDE)
    lengths = np.array([len(row) for row in _endings()])
    for found, sums in zip(_search(kind, config), _sums(kind), strict=True):
        scores = sums / ((offset + lengths) / (offset + 1)) ** penalty
        order = np.argsort(-scores)
        assert len(found) == len(order)
        np.testing.assert_allclose([one.score for one in found], scores[order], rtol=1e-4)
        expected = [[word for word in _endings()[place] if word != EOS] for place in order]
        assert [one.tokens for one in found[:20]] == expected[:20]


def test_the_length_penalty_prefers_long_hypotheses():
    lengths = [
        np.mean([len(found[0].tokens) for found in _search("decoder", BeamConfig(WIDE, length_penalty=penalty))])
        for penalty in (-3.0, 3.0)
    ]
    assert lengths[0] < lengths[1]


@pytest.mark.parametrize("kind", CONFIGS)
def test_one_beam_is_greedy(kind):
    model, params = _model(kind)
    greedy = Generator(model, SamplingConfig(temperature=0.0), EOS, PAD, start=STARTS[kind])
    found = _search(kind, BeamConfig(1), 8)
    assert [one.tokens for (one,) in found] == greedy.generate(params, PROMPTS, 8)


def _table_search(table_WW: np.ndarray, config: BeamConfig, new_tokens: int, eos_id: int | None) -> list[Beams]:
    """The states of one search in which the last token alone decides the next one's probabilities; word 0 begins."""
    log_p_WW = jax.nn.log_softmax(jnp.asarray(table_WW, jnp.float32))
    beams, states = Beams.empty((1, config.beams), new_tokens, PAD), []
    step = jax.jit(lambda beams, read, index: advanced(beams, log_p_WW[read], index, config, eos_id))
    for index in range(new_tokens):
        read = beams.tokens_BWN[..., index - 1] if index else jnp.zeros((1, config.beams), jnp.int32)
        beams = step(beams, read, index)
        states.append(jax.device_get(beams))
    return states


TABLE = np.random.default_rng(0).normal(size=(12, 12)) * 1.5 + 1.5 * (np.arange(12) == EOS)
"""Scores of the next word for each last word. A hypothesis ends soon."""
STOPPING = [True, False, "never"]


@pytest.mark.parametrize("early_stopping", STOPPING)
def test_hypotheses_do_not_change_and_give_way_only_to_better_ones(early_stopping):
    config = BeamConfig(4, early_stopping=early_stopping)
    states, kept = _table_search(TABLE, config, 12, EOS), {}
    for before, after in itertools.pairwise(states):
        assert (after.scores_BW >= before.scores_BW).all()
        if not before.open_B[0]:
            np.testing.assert_array_equal(after.ended_BWN, before.ended_BWN)
        for row, score in zip(after.ended_BWN[0].tolist(), after.scores_BW[0].tolist(), strict=True):
            if score > -np.inf:
                assert kept.setdefault(tuple(row), score) == score
                assert set(row[row.index(EOS) + 1 :] if EOS in row else ()) <= {PAD}
    assert len(kept) > 4 and not states[-2].open_B[0]


def test_how_early_a_search_stops():
    stops = []
    for early_stopping in STOPPING:
        config = BeamConfig(4, early_stopping=early_stopping)
        states = _table_search(TABLE, config, 12, EOS)
        full = next(index for index, one in enumerate(states) if np.isfinite(one.scores_BW).all())
        stops.append(next(index for index, one in enumerate(states) if not one.open_B[0]))
        assert stops[-1] == full or early_stopping is not True
    assert stops[0] < stops[1] < stops[2] < 11


def test_a_search_that_never_stops_early_misses_nothing():
    config = BeamConfig(4, early_stopping="never")
    states = _table_search(TABLE, config, 12, EOS)
    stop = next(index for index, one in enumerate(states) if not one.open_B[0])
    assert stop < 10
    beams, log_p_WW = states[stop], jax.nn.log_softmax(jnp.asarray(TABLE, jnp.float32))
    for index in range(stop + 1, 12):
        beams = dataclasses.replace(beams, open_B=jnp.ones(1, bool))
        beams = advanced(beams, log_p_WW[beams.tokens_BWN[..., index - 1]], index, config, EOS)
    np.testing.assert_array_equal(beams.ended_BWN, states[-1].ended_BWN)


def test_prompts_are_searched_apart_and_compiled_once():
    model, params = _model("decoder")
    search = BeamSearch(model, BeamConfig(3, n_best=3), EOS, PAD)
    found = search.search(params, PROMPTS, 6)
    turned = search.search(params, PROMPTS[::-1], 6)
    for one, other in zip(found, turned[::-1], strict=True):
        assert [hypothesis.tokens for hypothesis in one] == [hypothesis.tokens for hypothesis in other]
        assert [one.score for one in one] == sorted((one.score for one in one), reverse=True)
    assert search._begin._cache_size() == search._continue._cache_size() == 1


@pytest.mark.parametrize("name", ["recurrent_gemma", "lstm"])
def test_every_kind_of_state_follows_its_beam(name):
    """Scores are those of a forward pass without a cache."""
    model = build(PUBLISHED[name])
    params, prompts = tiny.parameters(model, seed=1), [[5], [7, 3, 9]]
    search = BeamSearch(model, BeamConfig(4, n_best=4), None, PAD)
    found, states = search.search(params, prompts, 6), list(search.steps(params, prompts, 6))
    assert any((state.parents_BW != np.arange(4)).any() for state in states[1:])  # rows of the cache move
    forward = jax.jit(lambda tokens: jax.nn.log_softmax(model.apply({"params": params}, tokens).logits_BTV))
    for prompt, hypotheses in zip(prompts, found, strict=True):
        rows = np.array([prompt + one.tokens + [0] * (7 - len(prompt)) for one in hypotheses], np.int32)
        log_p_BTV, at = np.asarray(forward(rows)), len(prompt) - 1
        sums = [sum(log_p_BTV[n, at + t, one.tokens[t]] for t in range(6)) for n, one in enumerate(hypotheses)]
        np.testing.assert_allclose([one.score for one in hypotheses], np.array(sums) / 6, rtol=1e-4)


def test_a_model_of_prefixes_reads_its_prompt_as_one():
    model = build(llama(2, **SMALL).with_mask(PrefixCausal()))
    params = tiny.parameters(model, seed=4)
    ((one,),) = BeamSearch(model, BeamConfig(2), None, PAD).search(params, [[3, 1, 3]], 1)
    place = SequenceInfo(jnp.arange(3)[None], prefix_BT=jnp.ones((1, 3), bool))
    tokens = np.array([[3, 1, 3]], np.int32)
    scores = [model.apply({"params": params}, inputs).logits_BTV[0, -1] for inputs in (Inputs(tokens, place), tokens)]
    np.testing.assert_allclose(one.score, jax.nn.log_softmax(scores[0]).max(), rtol=1e-4)
    assert abs(one.score - jax.nn.log_softmax(scores[1]).max()) > 1e-3


DIVERSE = BeamConfig(6, n_best=6, groups=3)


def _groups(penalty: float) -> np.ndarray:
    """Unfinished sequences after the first steps, [G, B, W, N]."""
    model, params = _model("encoder-decoder")
    config = dataclasses.replace(DIVERSE, diversity_penalty=penalty)
    states = list(BeamSearch(model, config, None, PAD, start=(0,)).steps(params, PROMPTS, 5))
    return np.asarray(states[-1].tokens_BWN)


def test_groups_without_a_penalty_are_independent_searches():
    tokens_GBWN = _groups(0.0)
    assert (tokens_GBWN == tokens_GBWN[:1]).all()
    model, params = _model("encoder-decoder")
    single = list(BeamSearch(model, BeamConfig(2), None, PAD, start=(0,)).steps(params, PROMPTS, 5))
    np.testing.assert_array_equal(tokens_GBWN[0], single[-1].tokens_BWN[0])


def test_a_penalty_makes_groups_differ():
    tokens_GBWN = _groups(50.0)
    np.testing.assert_array_equal(tokens_GBWN[0], _groups(0.0)[0])  # the first group knows of no other
    firsts_GB = tokens_GBWN[:, :, 0, 0]
    assert all(len(set(firsts_GB[:, row])) > 1 for row in range(len(PROMPTS)))
    # With 2 beams of 4 words, the second group takes the words that the first has not.
    for row in range(len(PROMPTS)):
        first, second = (set(tokens_GBWN[group, row, :, 0].tolist()) for group in (0, 1))
        assert not first & second


def _diverse(log_p_WW: np.ndarray, config: BeamConfig, new_tokens: int) -> list[list[tuple[list[int], float]]]:
    """Algorithm 1 of Vijayakumar et al. 2016, in Python: sequences and scores of each group; word 0 begins."""
    groups = [[([], 0.0)] for _ in range(config.groups)]
    for _ in range(new_tokens):
        chosen = np.zeros(len(log_p_WW))
        for number, group in enumerate(groups):
            found = [
                ([*row, word], score + log_p_WW[row[-1] if row else 0][word] - config.diversity_penalty * chosen[word])
                for row, score in group
                for word in range(len(log_p_WW))
            ]
            groups[number] = sorted(found, key=lambda one: -one[1])[: config.beams // config.groups]
            for row, _ in groups[number]:
                chosen[row[-1]] += 1
    return groups


@pytest.mark.parametrize("penalty", [0.3, 2.0])
def test_diverse_beams_are_those_of_a_loop_in_python(penalty):
    config, new = dataclasses.replace(DIVERSE, diversity_penalty=penalty, length_penalty=0.0), 6
    model = build(dataclasses.replace(CONFIGS["decoder"], vocab_size=12))
    search, beams = BeamSearch(model, config, None, PAD), Beams.empty((3, 1, 2), new, PAD)
    for index in range(new):
        read_R = (beams.tokens_BWN[..., index - 1] if index else jnp.zeros((3, 1, 2), int)).reshape(-1)
        beams = search._advance(beams, jnp.asarray(TABLE, jnp.float32)[read_R], index)
    expected = _diverse(np.asarray(jax.nn.log_softmax(TABLE)), config, new)
    assert beams.ended_BWN[:, 0].tolist() == [[row for row, _ in group] for group in expected]
    scores = [[score for _, score in group] for group in expected]
    np.testing.assert_allclose(beams.scores_BW[:, 0], scores, rtol=1e-4)
    assert beams.ended_BWN[0].tolist() != beams.ended_BWN[1].tolist()


def test_a_penalty_is_in_the_score():
    """Of the second group's first token: its log-probability less the penalty for each beam of the first group."""
    model, params = _model("decoder")
    config = BeamConfig(2, groups=2, diversity_penalty=0.1, length_penalty=0.0)
    (beams,) = BeamSearch(model, config, None, PAD).steps(params, [[1]], 1)
    first, second = np.asarray(beams.ended_BWN)[:, 0, 0, 0]
    log_p_V = jax.nn.log_softmax(model.apply({"params": params}, np.array([[1]], np.int32)).logits_BTV[0, 0])
    taken = np.asarray(log_p_V) - 0.1 * (np.arange(WORDS) == first)
    assert second == np.argmax(taken)
    np.testing.assert_allclose(beams.scores_BW[:, 0, 0], [log_p_V[first], taken[second]], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams is 0: it must be at least 1"),
        ({"n_best": 5}, "n_best is 5 and beams is 4"),
        ({"n_best": 0}, "n_best is 0 and beams is 4"),
        ({"groups": 3}, "groups is 3 and beams is 4: groups must divide beams"),
        ({"groups": 0}, "groups is 0"),
        ({"diversity_penalty": 1.0}, "diversity_penalty is 1.0 and groups is 1: it applies between groups"),
        ({"groups": 2, "diversity_penalty": -1.0}, "diversity_penalty is -1.0: it must be 0 or greater"),
        ({"length_offset": -1.0}, "length_offset is -1.0: it must be 0 or greater"),
        ({"early_stopping": "always"}, "early_stopping"),
    ],
)
def test_configs_that_describe_no_search_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        BeamConfig(**options)

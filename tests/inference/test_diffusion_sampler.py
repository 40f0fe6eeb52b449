"""Masks are filled as a plain loop over the steps fills them, and the samples have the model's probabilities."""

import functools
import itertools

import jax
import numpy as np
import pytest

from llm_jax.inference.diffusion_sampler import AtRandom, DiffusionSampler, DiffusionSamplingConfig
from llm_jax.inference.sampling import SamplingConfig
from llm_jax.models.families.bert import bert
from llm_jax.models.heads import ClassHead
from llm_jax.models.transformer import Transformer
from tests.helpers import tiny

MASK = 31
MODEL = Transformer(bert(1, 2, 8, vocab_size=32, max_length=24))
PARAMS = tiny.parameters(MODEL, seed=1)


@functools.partial(jax.jit, static_argnames="model")
def scores(tokens, model=MODEL, params=PARAMS):
    """Log-probabilities [T, V] of one sequence, of which the mask, the last id, has none."""
    logits_TV = model.apply({"params": params}, tokens[None]).logits_BTV[0]
    return jax.nn.log_softmax(logits_TV.at[:, -1].set(-np.inf))


def sampler(steps, model=MODEL, **fields):
    return DiffusionSampler(model, DiffusionSamplingConfig(steps=steps, **fields), MASK)


def greedy(sequence, steps):
    """Low-confidence remasking of one sequence."""
    tokens, masks = np.array(sequence), sequence.count(MASK)
    for index in range(steps):
        log_p = np.asarray(scores(tokens))
        count = masks * (index + 1) // steps - masks * index // steps
        masked = np.flatnonzero(tokens == MASK)
        chosen = sorted(masked, key=lambda at: -log_p[at].max())[:count]  # noqa: B023
        tokens[chosen] = log_p.argmax(axis=1)[chosen]
    return tokens.tolist()


SEQUENCES = [[5, MASK, MASK, 7, MASK], [MASK] * 9, [1, 2, 3], [3, 3, MASK]]


@pytest.mark.parametrize("steps", [1, 3, 9, 20])
def test_rows_of_different_lengths_are_filled_as_each_alone(steps):
    found = sampler(steps).fill(PARAMS, SEQUENCES)
    assert found == [greedy(sequence, steps) for sequence in SEQUENCES]
    assert MASK not in itertools.chain(*found)
    for sequence, row in zip(SEQUENCES, found, strict=True):
        assert all(token in (MASK, other) for token, other in zip(sequence, row, strict=True))


def test_steps_matter():
    assert sampler(1).fill(PARAMS, SEQUENCES) != sampler(9).fill(PARAMS, SEQUENCES)


@pytest.mark.parametrize("remasking", [{}, {"remasking": AtRandom()}], ids=["low confidence", "random"])
def test_samples_are_decided_by_the_seed(remasking):
    one = sampler(4, sampling=SamplingConfig(), **remasking)
    first, again, other = (one.generate(PARAMS, [[5], [7, 3]], 12, seed=seed) for seed in (0, 0, 1))
    assert first == again != other and all(len(row) == 12 for row in first)


def test_a_row_ends_at_its_end_token():
    rows = sampler(4).generate(PARAMS, [[5], [7, 3]], 12)
    end = rows[0][5]
    ended = sampler(4).generate(PARAMS, [[5], [7, 3]], 12, eos_id=end)
    assert ended == [row[: row.index(end)] if end in row else row for row in rows] and len(ended[0]) <= 5


def test_one_token_at_a_time_in_a_random_order_has_the_models_probabilities():
    words, count = 3, 20_000
    mask, model = words, Transformer(bert(2, 2, 8, vocab_size=words + 1, max_length=3))
    # Weights so large that the tokens depend on each other.
    params = jax.tree.map(lambda x: 2 * x, tiny.parameters(model, seed=9))
    expected = np.zeros((words, words))
    for one, other in np.ndindex(expected.shape):
        # The mean over both orders of filling two masks after the prompt [2].
        start, after_one, after_other = (
            np.exp(scores(np.array([2, *rest]), model, params))[1:]
            for rest in ((mask, mask), (one, mask), (mask, other))
        )
        expected[one, other] = (start[0, one] * after_one[1, other] + start[1, other] * after_other[0, one]) / 2
    assert expected.sum() == pytest.approx(1, rel=1e-5)

    def frequencies(steps):
        config = DiffusionSamplingConfig(steps=steps, remasking=AtRandom(), sampling=SamplingConfig())
        rows = DiffusionSampler(model, config, mask).generate(params, [[2]] * count, 2)
        return np.histogram2d(*np.array(rows).T, bins=np.arange(words + 1))[0] / count

    # Four standard errors of the most uncertain frequency.
    error = 4 * 0.5 / np.sqrt(count)
    np.testing.assert_allclose(frequencies(2), expected, atol=error)
    # In one step neither token knows of the other.
    assert np.abs(frequencies(1) - expected).max() > 2 * error


def test_tokens_that_are_none_of_the_tokenizer_are_never_drawn():
    config = DiffusionSamplingConfig(steps=3, sampling=SamplingConfig())
    rows = DiffusionSampler(MODEL, config, MASK, vocab_size=4).generate(PARAMS, [[20]] * 20, 10)
    assert set(itertools.chain(*rows)) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda one: one.fill(PARAMS, [[]]), "a prompt is empty"),
        (lambda one: one.fill(PARAMS, []), "a prompt is empty"),
        (lambda one: one.fill(PARAMS, [[32]]), "token 32, and the model's tokens are 0 to 31"),
        (lambda one: one.generate(PARAMS, [[1] * 5], 20), "has 25 tokens with its masks and the model's max_length"),
        (lambda one: one.generate(PARAMS, [[1]], 0), "new_tokens is 0"),
        (lambda one: one.fill(PARAMS, [[1]], seed=-1), "seed is -1"),
    ],
)
def test_bad_requests_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(sampler(2))


def test_models_and_settings_that_cannot_sample_are_refused():
    with pytest.raises(ValueError, match="the model is causal"):
        sampler(2, Transformer(tiny.tiny_llama()))
    with pytest.raises(ValueError, match="head is ClassHead"):
        sampler(2, Transformer(bert(1, 2, 8, head=ClassHead(3))))
    with pytest.raises(ValueError, match="mask_id is 32"):
        DiffusionSampler(MODEL, DiffusionSamplingConfig(), 32)
    with pytest.raises(ValueError, match="vocab_size is 33 and the model's is 32"):
        DiffusionSampler(MODEL, DiffusionSamplingConfig(), MASK, vocab_size=33)
    with pytest.raises(ValueError, match="steps is 0"):
        DiffusionSamplingConfig(steps=0)
    with pytest.raises(ValueError, match="repetition_penalty is 1.5"):
        DiffusionSamplingConfig(sampling=SamplingConfig(repetition_penalty=1.5))

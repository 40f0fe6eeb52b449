import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from llm_jax.inference.next_token import process, sample
from llm_jax.inference.sampling import SamplingConfig

VOCABULARY, ROWS = 37, 16
CONFIGS = [
    SamplingConfig(),
    SamplingConfig(temperature=0.0),
    SamplingConfig(temperature=0.6),
    SamplingConfig(top_k=1),
    SamplingConfig(top_k=5),
    SamplingConfig(top_k=1000),
    SamplingConfig(top_p=0.8),
    SamplingConfig(top_p=1.0),
    SamplingConfig(top_p=1e-6),
    SamplingConfig(min_p=0.1),
    SamplingConfig(min_p=1.0),
    SamplingConfig(repetition_penalty=1.7),
    SamplingConfig(temperature=0.0, repetition_penalty=1.7),
    SamplingConfig(temperature=1.8, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=0.8),
    SamplingConfig(temperature=0.3, top_k=12, top_p=0.7, min_p=0.2, repetition_penalty=1.3),
]
HAS_TRANSFORMERS = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))

jit_process = jax.jit(process, static_argnames="config")
jit_sample = jax.jit(sample, static_argnames="config")


def problem(seed):
    """Logits [rows, V], and the tokens [rows, 9] of each sequence so far."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3, size=(ROWS, VOCABULARY)).astype(np.float32)
    return logits, rng.integers(0, VOCABULARY, size=(ROWS, 9))


def mark(tokens):
    seen = np.zeros((len(tokens), VOCABULARY), bool)
    np.put_along_axis(seen, tokens, True, axis=1)
    return seen


def reference(logits, seen, config):
    """One sequence, token by token, in float64."""
    x = [float(value) for value in logits]
    if config.repetition_penalty != 1:
        factor = config.repetition_penalty
        x = [(v * factor if v < 0 else v / factor) if s else v for v, s in zip(x, seen, strict=True)]
    if config.temperature == 0:
        return [v if token == x.index(max(x)) else -np.inf for token, v in enumerate(x)]
    x = [v / config.temperature for v in x]
    if config.top_k is not None:
        least = sorted(x, reverse=True)[: config.top_k][-1]
        x = [v if v >= least else -np.inf for v in x]
    if config.top_p is not None:
        odds = np.exp(np.array(x) - max(x))
        probabilities, held, kept = odds / odds.sum(), 0.0, set()
        # The nucleus: likeliest first, until they hold p.
        for token in sorted(range(len(x)), key=lambda t: -probabilities[t]):
            if held >= config.top_p:
                break
            kept.add(token)
            held += probabilities[token]
        x = [v if token in kept else -np.inf for token, v in enumerate(x)]
    if config.min_p is not None:
        x = [v if np.exp(v - max(x)) >= config.min_p else -np.inf for v in x]
    return x


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_is_the_plain_reference(config):
    logits, tokens = problem(seed=1)
    seen = mark(tokens)
    wanted = np.array([reference(*row, config) for row in zip(logits, seen, strict=True)])
    got = np.asarray(jit_process(logits, config=config, seen_BV=seen))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(wanted))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_the_reference_cases_differ():
    logits, tokens = problem(seed=1)
    results = {jit_process(logits, config=config, seen_BV=mark(tokens)).tobytes() for config in CONFIGS}
    same = {SamplingConfig(), SamplingConfig(top_k=1000), SamplingConfig(top_p=1.0)}
    keeps_one = {SamplingConfig(top_k=1), SamplingConfig(top_p=1e-6), SamplingConfig(min_p=1.0), CONFIGS[1]}
    assert len(results) == len(CONFIGS) - (len(same) - 1) - (len(keeps_one) - 1)


@pytest.mark.skipif(not HAS_TRANSFORMERS, reason="torch and transformers are not installed")
@pytest.mark.parametrize("config", [config for config in CONFIGS if config.temperature], ids=str)
@pytest.mark.parametrize("ties", [False, True])
def test_is_transformers(config, ties):
    import torch
    from transformers.generation import logits_process as hf

    chain = [
        config.repetition_penalty != 1 and hf.RepetitionPenaltyLogitsProcessor(config.repetition_penalty),
        hf.TemperatureLogitsWarper(config.temperature),
        config.top_k and hf.TopKLogitsWarper(config.top_k),
        config.top_p and config.top_p < 1 and hf.TopPLogitsWarper(config.top_p),
        config.min_p and hf.MinPLogitsWarper(config.min_p),
    ]
    logits, tokens = problem(seed=2)
    if ties:
        logits = np.round(logits / 2)
        assert all(len(np.unique(row)) < VOCABULARY for row in logits)
    scores = torch.tensor(logits)
    for processor in filter(None, chain):
        scores = processor(torch.tensor(tokens), scores)
    got = np.asarray(jit_process(logits, config=config, seen_BV=mark(tokens)))
    wanted = scores.numpy()
    if ties:
        # Which of several equal tokens falls out of the nucleus is left to torch's unstable sort.
        got, wanted = np.sort(got), np.sort(wanted)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(wanted))
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "config, kept",
    [
        (SamplingConfig(top_k=2), [1, 3, 4, 6]),  # the k-th is shared: all that equal it stay
        (SamplingConfig(top_p=0.45), [1, 3]),  # each holds a quarter: two of them are enough
        (SamplingConfig(top_p=1e-9), [1]),
        (SamplingConfig(min_p=1.0), [1, 3, 4, 6]),
        (SamplingConfig(temperature=0.0), [1]),
    ],
    ids=str,
)
def test_ties(config, kept):
    logits = np.array([[-40, 5, -40, 5, 5, -40, 5]], np.float32)
    assert np.flatnonzero(np.isfinite(jit_process(logits, config=config))).tolist() == kept


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("logits", [np.zeros, lambda shape: np.eye(*shape) * 1e4], ids=["flat", "certain"])
def test_something_is_always_kept_and_drawn(config, logits):
    x = logits((ROWS, VOCABULARY)).astype(np.float32)
    seen = np.ones_like(x, dtype=bool)
    kept = np.isfinite(jit_process(x, config=config, seen_BV=seen))
    assert kept.any(axis=1).all()
    tokens = jit_sample(x, jax.random.key(0), config=config, seen_BV=seen)
    assert tokens.dtype == jnp.int32 and tokens.shape == (ROWS,)
    assert kept[np.arange(ROWS), tokens].all()


def test_temperature_zero_needs_no_luck():
    logits, tokens = problem(seed=3)
    config = SamplingConfig(temperature=0.0)
    draws = [jit_sample(logits, jax.random.key(seed), config=config) for seed in range(3)]
    for draw in draws:
        np.testing.assert_array_equal(draw, logits.argmax(axis=1))
    penalised = SamplingConfig(temperature=0.0, repetition_penalty=50.0)
    seen = logits == logits.max(axis=1, keepdims=True)
    changed = jit_sample(logits, jax.random.key(0), config=penalised, seen_BV=seen)
    np.testing.assert_array_equal(changed, np.where(seen, -np.inf, logits).argmax(axis=1))


def test_repetition_penalty_lowers_what_was_seen_whatever_its_sign():
    logits = np.array([[2.0, -2.0, 2.0, -2.0, 0.0]], np.float32)
    seen = np.array([[True, True, False, False, True]])
    got = jit_process(logits, config=SamplingConfig(repetition_penalty=2.0), seen_BV=seen)
    np.testing.assert_array_equal(got, [[1.0, -4.0, 2.0, -2.0, 0.0]])


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0.5),
        SamplingConfig(temperature=2.0, top_k=6),
        SamplingConfig(top_p=0.85),
        SamplingConfig(min_p=0.15),
    ],
    ids=str,
)
def test_draws_have_the_distribution(config):
    """Chi-square of 20,000 draws against probabilities worked out apart."""
    draws = 20_000
    logits = np.array([1.5, 1.0, 0.7, 0.2, 0.0, -0.4, -0.9, -1.3, -2.0, -2.2], np.float32)
    rows = np.broadcast_to(logits, (draws, len(logits)))
    counts = np.bincount(jit_sample(rows, jax.random.key(7), config=config), minlength=len(logits))
    odds = np.exp(reference(logits, np.zeros(len(logits), bool), config))
    kept = odds > 0
    assert counts[~kept].sum() == 0
    expected = draws * odds[kept] / odds.sum()
    assert expected.min() > 5
    assert scipy.stats.chisquare(counts[kept], expected).pvalue > 1e-3
    other = np.exp(reference(logits, np.zeros(len(logits), bool), SamplingConfig(temperature=0.9)))[kept]
    assert scipy.stats.chisquare(counts[kept], draws * other / other.sum()).pvalue < 1e-6


def test_bfloat16_logits_are_processed_in_float32():
    logits, _ = problem(seed=4)
    narrow = logits.astype(jnp.bfloat16)
    config = SamplingConfig(temperature=0.7, top_p=0.9)
    wide = functools.partial(jit_process, config=config)
    assert wide(narrow).dtype == jnp.float32
    np.testing.assert_array_equal(wide(narrow), wide(narrow.astype(np.float32)))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SamplingConfig(temperature=-0.1), "temperature is -0.1"),
        (lambda: SamplingConfig(top_k=0), "top_k is 0.*None to keep all"),
        (lambda: SamplingConfig(top_p=0.0), "top_p is 0.0"),
        (lambda: SamplingConfig(top_p=1.01), "top_p is 1.01"),
        (lambda: SamplingConfig(min_p=-0.5), "min_p is -0.5"),
        (lambda: SamplingConfig(min_p=1.5), "min_p is 1.5"),
        (lambda: SamplingConfig(repetition_penalty=0.0), "repetition_penalty is 0.0"),
        (lambda: process(np.zeros((1, 4)), SamplingConfig(repetition_penalty=1.2)), "seen_BV has shape None"),
        (
            lambda: process(np.zeros((2, 4)), SamplingConfig(repetition_penalty=1.2), np.zeros((2, 3), bool)),
            "seen_BV has shape \\(2, 3\\): it must have the shape \\(2, 4\\)",
        ),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()

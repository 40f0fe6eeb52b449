import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.core import config_text
from llm_jax.core.metrics import means
from llm_jax.models.build import build
from llm_jax.models.families.t5 import t5
from llm_jax.objectives import Denoiser, MixtureOfDenoisersConfig, SpanCorruptionConfig
from tests.helpers import tiny

VOCAB = 400
MODEL = t5(1, 2, 8, hidden=16, vocab_size=VOCAB, max_length=1100)
UL2 = MixtureOfDenoisersConfig()
R, S, X = VOCAB - 1, VOCAB - 2, VOCAB - 3
TEXT = 60
"""Ids of text are below it, those of the objective not."""


def row(length, real=None, seed=0):
    """Tokens of text, and padding after `real`."""
    real = length + 1 if real is None else real
    tokens = np.random.default_rng(seed).integers(0, TEXT, length + 1).astype(np.int32)
    segments = (np.arange(length + 1) < real).astype(np.int32)
    return {"tokens": tokens * segments, "segment_ids": segments, "positions": np.arange(length + 1, dtype=np.int32)}


examples = functools.cache(lambda config, length: config.examples(MODEL, None, length))


def example(config, given, seed=0):
    """What the encoder reads without padding, the targets without padding, and the row."""
    found = examples(config, len(given["tokens"]) - 1).row(given, np.random.default_rng(seed))
    source, target = (
        found[name][found[segments] == 1]
        for name, segments in (("encoder_tokens", "encoder_segment_ids"), ("targets", "target_segment_ids"))
    )
    return source, target, found


def restored(source, target):
    """The text, by putting the spans of the target in the place of the sentinels of the source."""
    spans, text = {}, []
    for token in target.tolist():
        if token >= TEXT:
            spans[token] = current = []
        else:
            current.append(token)
    for token in source.tolist():
        text += spans.pop(token) if token >= TEXT else [token]
    assert list(spans.values()) == [[]]  # the last sentinel ends the target
    return text


@settings(deadline=None, max_examples=200, database=None)
@given(st.integers(2, 500), st.floats(0, 1), st.integers(0, 1000))
def test_source_and_target_hold_the_text_between_them(length, share, seed):
    given = row(length, round(share * (length + 1)), seed)
    source, target, found = example(UL2, given, seed)
    text = given["tokens"][:-1][given["segment_ids"][:-1] == 1].tolist()
    if len(text) > 1:
        assert source[0] in (R, S, X) and restored(source[1:], target) == text
        assert target[0] == VOCAB - 4  # the first sentinel
    else:
        assert len(source) == len(target) == 0
    assert (len(found["encoder_tokens"]), len(found["targets"])) == UL2.lengths(length)
    # The decoder reads the targets before its own.
    np.testing.assert_array_equal(found["decoder_tokens"], np.append(0, found["targets"])[:-1])
    assert VOCAB - len(UL2.special_tokens(length)) <= min(source[source >= TEXT], default=VOCAB)
    assert VOCAB - len(UL2.special_tokens(length)) <= min(target[target >= TEXT], default=VOCAB)


def test_each_denoiser_corrupts_as_its_config_says():
    """Over 1e5 tokens of each, in rows whose corrupted tokens are a multiple of the mean span: within 1%."""
    for denoiser in UL2.denoisers:
        config, tokens, spans = MixtureOfDenoisersConfig(denoisers=(denoiser,)), 0, 0
        for seed in range(80):
            source, target, _ = example(config, row(1280, seed=seed), seed)
            tokens += (target < TEXT).sum()
            spans += (target >= TEXT).sum() - 1
            assert source[0] == VOCAB - 1
        assert tokens / (80 * 1280) == pytest.approx(denoiser.rate, rel=0.01)
        if denoiser.mean_span is None:
            assert spans == 80 and (source[1:961] == row(1280, seed=79)["tokens"][:960]).all()
        else:
            assert tokens / spans == pytest.approx(denoiser.mean_span, rel=0.01)


def test_denoisers_are_drawn_by_their_weights():
    config = MixtureOfDenoisersConfig(
        denoisers=(Denoiser("R", 0.15, 3.0), Denoiser("S", 0.25, None, weight=2.0), Denoiser("X", 0.5, 3.0))
    )
    modes = [example(config, row(64, seed=seed), seed)[0][0] for seed in range(10_000)]
    shares = [modes.count(mode) / len(modes) for mode in (R, S, X)]
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=0.015)
    again = [example(config, row(64, seed=seed), seed)[0][0] for seed in range(100)]
    assert again == modes[:100]


def test_modes_of_ul2_and_their_ids():
    assert UL2.modes == ("R", "S", "X")
    for seed in range(200):
        source, target, _ = example(UL2, row(512, seed=seed), seed)
        corrupted, spans = (target < TEXT).sum(), (target >= TEXT).sum() - 1
        expected = {R: [(77, 26), (77, 10)], S: [(128, 1)], X: [(256, 85), (256, 32), (77, 1), (256, 4)]}
        assert (corrupted, spans) in expected[int(source[0])]


def test_lengths_are_the_least_that_hold_every_denoiser():
    sources, targets = set(), set()
    for seed in range(200):
        source, target, _ = example(UL2, row(512, seed=seed), seed)
        sources.add(len(source))
        targets.add(len(target))
    assert UL2.lengths(512) == (max(sources), max(targets))


def test_one_regular_denoiser_is_span_corruption_with_a_mode():
    """The same random choices on both sides."""
    one = MixtureOfDenoisersConfig(denoisers=(Denoiser("R", 0.15, 3.0),))
    given, generator = row(200), np.random.default_rng(3)
    generator.choice(1, p=[1.0])
    plain = SpanCorruptionConfig().examples(MODEL, None, 200).row(given, generator)
    source, target, _ = example(one, given, 3)
    below = lambda ids: np.where(ids >= TEXT, ids - 1, ids)  # noqa: E731
    np.testing.assert_array_equal(source[1:], below(plain["encoder_tokens"]))
    np.testing.assert_array_equal(target, below(plain["targets"]))


def test_the_loss_is_that_of_the_targets_without_padding():
    model, params = build(MODEL), tiny.parameters(build(MODEL))
    rows = [example(UL2, row(40, seed=seed), seed)[2] for seed in range(3)]
    batch = UL2.batch({name: np.stack([one[name] for one in rows]) for name in rows[0]})
    loss, metrics = jax.jit(lambda params: UL2.loss(model, params, batch))(params)
    logits = jax.jit(lambda: model.apply({"params": params}, batch.inputs).logits_BTV)()
    targets, real = (np.stack([one[name] for one in rows]) for name in ("targets", "target_segment_ids"))
    nats = -np.asarray(jax.nn.log_softmax(logits))[real == 1, targets[real == 1]]
    assert 0 < real.sum() < real.size
    assert float(loss) == pytest.approx(nats.sum(), rel=1e-5)
    assert means(metrics)["loss"] == pytest.approx(nats.mean(), rel=1e-5)


def test_the_config_is_read_back_from_its_text():
    assert config_text.parse(config_text.to_text(UL2)) == UL2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Denoiser("R", 1.0, 3.0), "rate of denoiser 'R' is 1.0"),
        (lambda: Denoiser("R", 0.5, 0.5), "mean_span of denoiser 'R' is 0.5"),
        (lambda: Denoiser("R", 0.5, 3.0, weight=0.0), "weight of denoiser 'R' is 0.0"),
        (lambda: MixtureOfDenoisersConfig(denoisers=()), "objective.denoisers is empty"),
    ],
)
def test_values_that_mean_nothing_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_models_that_do_not_fit_are_refused():
    UL2.check(MODEL, 1024)
    with pytest.raises(ValueError, match="trains encoder-decoders and model is of type Transformer.*families.t5"):
        UL2.check(tiny.tiny_llama(), 16)
    with pytest.raises(ValueError, match="data.sequence_length is 1"):
        UL2.check(MODEL, 1)
    with pytest.raises(ValueError, match="sequences of .* and model.max_length is 1100"):
        UL2.check(MODEL, 2000)

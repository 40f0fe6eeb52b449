import jax
import numpy as np
import pytest

from llm_jax.core.metrics import means
from llm_jax.models import count
from llm_jax.models.build import build
from llm_jax.models.families.t5 import t5
from llm_jax.objectives import CausalLMConfig, SpanCorruptionConfig
from tests.helpers import tiny

VOCAB = 120
MODEL = t5(1, 2, 8, hidden=16, vocab_size=VOCAB, max_length=600)


def row(length, real=None, seed=0):
    """Tokens from 0 to 59, none of them a sentinel, and padding after `real`."""
    real = length + 1 if real is None else real
    tokens = np.random.default_rng(seed).integers(0, 60, length + 1).astype(np.int32)
    segments = (np.arange(length + 1) < real).astype(np.int32)
    return {"tokens": tokens * segments, "segment_ids": segments, "positions": np.arange(length + 1, dtype=np.int32)}


def example(length, config=SpanCorruptionConfig(), seed=0, **options):  # noqa: B008
    given = row(length, **options)
    return given, config.examples(MODEL, None, length).row(given, np.random.default_rng(seed))


def restored(source, target):
    """The text, by putting the spans of the target in the place of the sentinels of the source."""
    spans, text = {}, []
    for token in target.tolist():
        if token >= 60:
            spans[token] = current = []
        else:
            current.append(token)
    for token in source.tolist():
        text += spans.pop(token) if token >= 60 else [token]
    assert list(spans.values()) == [[]]  # the last sentinel ends the target
    return text


@pytest.mark.parametrize("rate", [0.15, 0.5, 0.9])
@pytest.mark.parametrize("length", [2, 3, 7, 100, 512])
def test_source_and_target_hold_the_text_between_them(length, rate):
    config = SpanCorruptionConfig(rate=rate, mean_span=10.0 if rate == 0.9 else 3.0)
    if len(config.special_tokens(length)) > 60:
        config = SpanCorruptionConfig(rate=rate, mean_span=length / 20)
    for seed in range(5):
        given, found = example(length, config, seed)
        assert restored(found["encoder_tokens"], found["targets"]) == given["tokens"][:-1].tolist()
        assert (len(found["encoder_tokens"]), len(found["targets"])) == config.lengths(length)
        assert found["encoder_segment_ids"].all() and found["target_segment_ids"].all()
        corrupted, spans = config.corrupted(length)
        sentinels = found["targets"][found["targets"] >= 60]
        np.testing.assert_array_equal(sentinels, VOCAB - 1 - np.arange(spans + 1))
        assert len(found["targets"]) - len(sentinels) == corrupted
        assert len(config.special_tokens(length)) == spans + 1


def test_t5s_own_lengths():
    """A row of 568 tokens gives T5's 512 and 114, each with its eos, which these have not and a last sentinel."""
    assert SpanCorruptionConfig().corrupted(568) == (85, 28)
    assert SpanCorruptionConfig().lengths(568) == (511, 114)


def test_every_token_but_the_first_is_corrupted_as_often():
    counts = np.zeros(60)
    for seed in range(3000):
        _, found = example(60, seed=seed)
        kept = np.flatnonzero(found["encoder_tokens"] >= 60)
        # By the lengths of the spans, from the target.
        lengths = np.diff(np.flatnonzero(found["targets"] >= 60)) - 1
        place = 0
        for index in range(len(found["encoder_tokens"])):
            if index in kept:
                size = lengths[int(np.searchsorted(kept, index))]
                counts[place : place + size] += 1
                place += size
            else:
                place += 1
    assert counts[0] == 0 and counts[-1] == 3000  # as T5's code has it: a row begins with text and ends with a span
    np.testing.assert_allclose(counts[10:50] / 3000, 0.15, atol=0.06)


def test_padding_is_not_corrupted_and_has_no_target():
    given, found = example(100, real=40)
    source, target = (
        found[name][found[segments] == 1]
        for name, segments in (("encoder_tokens", "encoder_segment_ids"), ("targets", "target_segment_ids"))
    )
    assert restored(source, target) == given["tokens"][:40].tolist()
    _, found = example(100, real=0)
    assert not found["encoder_segment_ids"].any() and not found["target_segment_ids"].any()


def test_the_decoder_reads_the_targets_before_and_the_loss_is_theirs():
    objective, model = SpanCorruptionConfig(), build(MODEL)
    params = tiny.parameters(model)
    rows = [example(40, real=real, seed=real)[1] for real in (41, 25)]
    batch = objective.batch({name: np.stack([one[name] for one in rows]) for name in rows[0]})
    targets = np.stack([one["targets"] for one in rows])
    np.testing.assert_array_equal(batch.inputs.tokens_BT, np.concatenate([np.zeros((2, 1)), targets[:, :-1]], axis=1))
    loss, metrics = jax.jit(lambda params: objective.loss(model, params, batch))(params)
    logits = jax.jit(lambda: model.apply({"params": params}, batch.inputs).logits_BTV)()
    real = np.stack([one["target_segment_ids"] for one in rows]) == 1
    nats = -np.asarray(jax.nn.log_softmax(logits))[real, targets[real]]
    assert 0 < real.sum() < real.size
    assert float(loss) == pytest.approx(nats.sum(), rel=1e-5)
    assert means(metrics)["loss"] == pytest.approx(nats.mean(), rel=1e-5)

    # What the encoder reads matters, and its padding does not.
    def other(place, token):
        source = batch.inputs.encoder.tokens_BT.copy()
        source[1, place] = token
        inputs = batch.inputs.replace(encoder=batch.inputs.encoder.replace(tokens_BT=source))
        return float(jax.jit(lambda batch: objective.loss(model, params, batch)[0])(batch.replace(inputs=inputs)))

    assert other(2, 5) != pytest.approx(float(loss), rel=1e-6) and other(-1, 5) == pytest.approx(float(loss), rel=1e-6)


def test_flops_are_those_of_what_is_read():
    source, target = SpanCorruptionConfig().lengths(100)
    assert SpanCorruptionConfig().training_flops(MODEL, 100) == 3 * count.pair_flops(MODEL, source, target) / 100
    with pytest.raises(ValueError, match="SpanCorruptionConfig trains encoder-decoders"):
        SpanCorruptionConfig().training_flops(tiny.tiny_llama(), 100)


def test_shapes_of_a_batch_are_known_without_data():
    for objective, model in ((SpanCorruptionConfig(), MODEL), (CausalLMConfig(), tiny.tiny_llama())):
        examples = objective.examples(model, None, 16)
        rows = [examples.row(row(16, seed=seed), np.random.default_rng(0)) for seed in range(3)]
        batch = objective.batch({name: np.stack([one[name] for one in rows]) for name in rows[0]})
        shapes = lambda batch: jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), batch)  # noqa: E731
        assert shapes(objective.abstract_batch(model, None, 16, 3)) == shapes(batch)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": 1.0}, "objective.rate is 1.0"),
        ({"rate": 0.0}, "rate is 0.0"),
        ({"mean_span": 0.5}, "mean_span is 0.5"),
    ],
)
def test_values_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SpanCorruptionConfig(**fields)


def test_other_models_are_refused():
    SpanCorruptionConfig().check(MODEL, 16)
    with pytest.raises(
        ValueError, match="SpanCorruptionConfig trains encoder-decoders and model is of type Transformer"
    ):
        SpanCorruptionConfig().check(tiny.tiny_llama(), 16)
    with pytest.raises(ValueError, match="CausalLMConfig trains decoders and model is of type EncoderDecoderConfig"):
        CausalLMConfig().check(MODEL, 16)
    with pytest.raises(ValueError, match="data.sequence_length is 1"):
        SpanCorruptionConfig().check(MODEL, 1)


def test_chunks_of_the_loss_change_nothing_and_must_divide_the_targets():
    whole, cut, model = SpanCorruptionConfig(z_loss=0.1), SpanCorruptionConfig(z_loss=0.1, chunks=3), build(MODEL)
    params, rows = tiny.parameters(model), [example(38, seed=seed)[1] for seed in range(2)]
    batch = whole.batch({name: np.stack([one[name] for one in rows]) for name in rows[0]})
    assert whole.targets(38) == batch.targets_BT.shape[1] == 9
    losses = [jax.jit(lambda one=one: one.loss(model, params, batch)[0])() for one in (whole, cut)]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    cut.check(MODEL, 38)
    with pytest.raises(ValueError, match="objective.chunks is 3 and .* is 45, which gives sequences of 10"):
        SpanCorruptionConfig(chunks=3).check(MODEL, 45)

"""Replaced-token detection: generator and discriminator in one step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax.core.metrics import means
from llm_jax.core.trees import named_leaves
from llm_jax.layers.roles import unboxed
from llm_jax.models import count
from llm_jax.models.build import abstract_parameters, applied, build, initial_parameters
from llm_jax.models.families.bert import bert, discriminator, electra
from llm_jax.models.inputs import Inputs
from llm_jax.objectives import CausalLMConfig, MaskedLMConfig, ReplacedTokensConfig
from tests.helpers import packed_rows, tiny

T, MASK = 24, 31
CONFIG = electra(1, 2, 16, share=0.5, narrow=8, vocab_size=32, max_length=T)
MODEL = build(CONFIG)
PARAMS = tiny.parameters(MODEL)
OBJECTIVE = ReplacedTokensConfig(generator=MaskedLMConfig(masked=1.0, random=0.0, rate=0.25, chunks=2), weight=5.0)


def rows_of(count, lengths=(9, 11), seed=0):
    examples = OBJECTIVE.examples(CONFIG, None, T)
    given = [packed_rows.row(lengths, T + 1 - sum(lengths), words=30, seed=seed + number) for number in range(count)]
    return [examples.row(row, np.random.default_rng(number)) for number, row in enumerate(given)]


def batch_of(rows):
    return packed_rows.stacked(OBJECTIVE, rows)


BATCH = batch_of(rows_of(4))


@functools.cache
def gradient(weight=5.0, chunks=2):
    generator = dataclasses.replace(OBJECTIVE.generator, chunks=chunks)
    loss = functools.partial(dataclasses.replace(OBJECTIVE, generator=generator, weight=weight).loss, MODEL)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def always(token):
    """Parameters of a generator that predicts one token everywhere."""
    bias = PARAMS["generator_head"]["bias"].at[token].set(1e4)
    return PARAMS | {"generator_head": PARAMS["generator_head"] | {"bias": bias}}


def masked_of(batch):
    """bool [B, T], whether a token is masked."""
    return (batch.masked.inputs.tokens_BT == MASK) & (batch.tokens_BT != MASK)


def test_the_generator_reads_masks_and_the_text_is_kept():
    masked = masked_of(BATCH)
    np.testing.assert_array_equal(masked.sum(axis=1), 5)  # a quarter of twenty
    np.testing.assert_array_equal(BATCH.masked.inputs.tokens_BT[~masked], BATCH.tokens_BT[~masked])


def test_the_loss_is_that_of_whole_logits():
    token = 7
    text = np.where(masked_of(BATCH) & (np.arange(T) % 2 == 0), token, BATCH.tokens_BT)
    targets = np.take_along_axis(text, BATCH.masked.at_BT, axis=1)
    batch = dataclasses.replace(BATCH, tokens_BT=text, masked=dataclasses.replace(BATCH.masked, targets_BT=targets))
    masked, params = masked_of(batch), always(token)
    (loss, metrics), _ = gradient()(params, batch, jax.random.key(0))
    replaced = np.where(masked, token, text)
    sequence, labels = batch.masked.inputs.sequence, replaced != text
    real = sequence.segment_ids_BT != 0
    # A sample that is the token itself is not replaced.
    assert 0 < labels.sum() < masked.sum()
    scores = np.asarray(jax.jit(lambda: applied(MODEL, params, Inputs(replaced, sequence)).logits_BTV)())[..., 0]
    detection = (np.logaddexp(0, scores) - labels * scores)[real]

    def logits():
        hidden_BTD = applied(MODEL, params, batch.masked.inputs, method="generator_hidden").hidden_BTD
        return jax.nn.log_softmax(applied(MODEL, params, hidden_BTD, method="generator_unembed"))

    nats = -np.take_along_axis(np.asarray(jax.jit(logits)()), text[..., None], axis=-1)[..., 0][masked]
    found = means(metrics)
    assert found["discriminator_loss"] == pytest.approx(detection.mean(), rel=1e-5)
    assert found["accuracy"] == pytest.approx(((scores > 0) == labels)[real].mean())
    assert found["generator_loss"] == pytest.approx(nats.mean(), rel=1e-5)
    assert found["replaced"] == pytest.approx(labels.sum() / real.sum())
    assert float(loss) == pytest.approx(nats.sum() / 0.25 + 5 * detection.sum(), rel=1e-5)
    assert float(metrics["loss"].count) == real.sum()
    # The masked tokens are the expected number here, so that the loss is the sum of both means.
    assert found["loss"] == pytest.approx(nats.mean() + 5 * detection.mean(), rel=1e-5)


def test_samples_follow_the_generators_distribution():
    """Over 20 x 1000 tokens: the share that is not replaced is the probability of the token itself."""
    bias = PARAMS["generator_head"]["bias"] * 0 + jnp.where(jnp.arange(32) < 4, 3.0, 0.0)
    params = PARAMS | {"generator_head": PARAMS["generator_head"] | {"bias": bias}}

    def probabilities():
        hidden_BTD = applied(MODEL, params, BATCH.masked.inputs, method="generator_hidden").hidden_BTD
        return jax.nn.softmax(applied(MODEL, params, hidden_BTD, method="generator_unembed"))

    p_BTV, masked = np.asarray(jax.jit(probabilities)()), masked_of(BATCH)
    # The most likely token is the text.
    text = np.where(masked, p_BTV.argmax(axis=-1), BATCH.tokens_BT)
    targets = np.take_along_axis(text, BATCH.masked.at_BT, axis=1)
    batch = dataclasses.replace(BATCH, tokens_BT=text, masked=dataclasses.replace(BATCH.masked, targets_BT=targets))
    share = lambda key: OBJECTIVE.loss(MODEL, params, batch, key)[1]["replaced"]  # noqa: E731
    replaced = jax.jit(lambda keys: jax.lax.map(share, keys))
    shares = replaced(jax.random.split(jax.random.key(0), 1000))
    expected = (1 - p_BTV.max(axis=-1))[masked].sum()
    assert 0.1 < expected / masked.sum() < 0.9
    assert float(shares.total.mean()) == pytest.approx(expected, abs=0.25)


def test_no_gradient_passes_through_the_samples():
    key = jax.random.key(3)
    (_, both), (_, alone) = gradient()(PARAMS, BATCH, key), gradient(weight=0.0)(PARAMS, BATCH, key)
    for part in ("generator", "generator_head"):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), both[part], alone[part])
    table = lambda found: np.asarray(found["discriminator"]["embed"]["table"])  # noqa: E731
    assert np.abs(table(alone)).max() > 1e-3 and np.abs(table(both) - table(alone)).max() > 1e-3
    for name, leaf in named_leaves(both):
        assert (np.abs(leaf).max() > 1e-3) == (not name.endswith("key/bias")), name


def test_the_discriminator_does_not_read_what_was_replaced():
    """Its scores depend on the text at a replaced place through the label alone."""
    (row, place), params = np.argwhere(masked_of(BATCH))[0], always(7)

    def found(token):
        text = BATCH.tokens_BT.copy()
        text[row, place] = token
        targets = np.take_along_axis(text, BATCH.masked.at_BT, axis=1)
        batch = dataclasses.replace(BATCH, tokens_BT=text, masked=dataclasses.replace(BATCH.masked, targets_BT=targets))
        return {name: float(metric.total) for name, metric in gradient()(params, batch, None)[0][1].items()}

    one, other, same = found(3), found(5), found(7)
    assert one["generator_loss"] != other["generator_loss"]
    assert one["discriminator_loss"] == other["discriminator_loss"] and one["replaced"] == other["replaced"]
    assert same["replaced"] == one["replaced"] - 1 and same["discriminator_loss"] != one["discriminator_loss"]


def test_samples_depend_on_the_key_and_evaluation_has_its_own():
    loss = lambda key, batch=BATCH: float(gradient()(PARAMS, batch, key)[0][0])  # noqa: E731
    assert loss(jax.random.key(0)) == loss(jax.random.key(0)) != loss(jax.random.key(1))
    whole = loss(None)
    assert whole == loss(None) and whole != loss(jax.random.key(0))
    # A row has its noise in every batch, so that an evaluation does not depend on how it is divided.
    parts = [jax.tree.map(lambda x, row=row: x[row : row + 1], BATCH) for row in range(4)]
    assert sum(loss(None, part) for part in parts) == pytest.approx(whole, rel=1e-5)
    assert sum(loss(jax.random.key(0), part) for part in parts) == pytest.approx(loss(jax.random.key(0)), rel=1e-5)


def test_chunks_change_nothing():
    key = jax.random.key(2)
    found, other = (gradient(chunks=chunks)(PARAMS, BATCH, key) for chunks in (2, 1))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-4), found, other)


def test_padding_costs_nothing():
    empty = {name: np.zeros(T + 1, np.int32) for name in ("tokens", "segment_ids", "positions")}
    row = OBJECTIVE.examples(CONFIG, None, T).row(empty, np.random.default_rng(0))
    (loss, metrics), found = gradient()(PARAMS, batch_of([row]), None)
    assert float(loss) == float(metrics["loss"].count) == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(found))


def test_both_learn():
    """Each row repeats one token."""
    tokens = np.random.default_rng(0).integers(0, 30, (64, 1)).repeat(T + 1, axis=1).astype(np.int32)
    places = np.arange(T + 1, dtype=np.int32)
    rows = [{"tokens": row, "segment_ids": np.ones(T + 1, np.int32), "positions": places} for row in tokens]
    examples, optimizer = OBJECTIVE.examples(CONFIG, None, T), optax.adam(1e-2)
    params = unboxed(jax.jit(lambda: initial_parameters(MODEL, jax.random.key(0)))())

    @jax.jit
    def step(params, state, batch, key):
        (_, metrics), found = jax.value_and_grad(functools.partial(OBJECTIVE.loss, MODEL), has_aux=True)(
            params, batch, key
        )
        updates, state = optimizer.update(jax.tree.map(lambda g: g / metrics["loss"].count, found), state, params)
        return optax.apply_updates(params, updates), state, metrics

    state = optimizer.init(params)
    for number in range(100):
        batch = batch_of([examples.row(row, np.random.default_rng([number, at])) for at, row in enumerate(rows)])
        params, state, metrics = step(params, state, batch, jax.random.key(number))
    found = means(metrics)
    assert found["generator_loss"] < 0.5 * np.log(30)
    # Better than the share of replaced tokens as the score of every token.
    share = found["replaced"]
    assert share > 0.01 and found["discriminator_loss"] < -0.7 * (
        share * np.log(share) + (1 - share) * np.log1p(-share)
    )


def test_flops_are_those_of_both_with_the_generators_head_for_masked_tokens():
    logits = 3 * CONFIG.head.matrix_flops(*CONFIG.head_sizes)
    assert OBJECTIVE.training_flops(CONFIG, T) == pytest.approx(count.training_flops(CONFIG, T) - 0.75 * logits)
    batch = OBJECTIVE.abstract_batch(CONFIG, None, T, 4)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), tree)  # noqa: E731
    assert shapes(batch) == shapes(BATCH)
    assert abstract_parameters(MODEL)[0].keys() == {"generator", "discriminator", "generator_head"}


REFUSED = {
    "ReplacedTokensConfig trains a generator and a discriminator and model is of type TransformerConfig": lambda: (
        OBJECTIVE.check(bert(1, 2, 16, head=discriminator()), T)
    ),
    "MaskedLMConfig trains encoders and model is of type GeneratorDiscriminatorConfig": lambda: MaskedLMConfig().check(
        CONFIG, T
    ),
    "CausalLMConfig trains decoders and model is of type GeneratorDiscriminatorConfig": lambda: CausalLMConfig().check(
        CONFIG, T
    ),
    "objective.generator.chunks is 2 and sequences of 20 tokens have 5 targets": lambda: OBJECTIVE.check(CONFIG, 20),
    "weight is -1.0": lambda: ReplacedTokensConfig(weight=-1.0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_means_nothing_is_refused(message):
    OBJECTIVE.check(CONFIG, T)
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()

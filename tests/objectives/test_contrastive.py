"""Embeddings depend on their own text, every other text of the batch is a negative, and the loss is InfoNCE."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.metrics import means
from llm_jax.data import DataConfig, HashSplit, JsonLinesConfig, RecordsConfig
from llm_jax.models.build import boxed_parameters, build
from llm_jax.models.dropout import Rates, with_dropout
from llm_jax.models.families.bert import bert
from llm_jax.objectives.contrastive import ContrastiveConfig
from llm_jax.optim import AdamWConfig, Constant
from llm_jax.sharding.rules import DataParallel, ShardingConfig
from llm_jax.train.state import initial_state
from llm_jax.train.step import StepConfig, train_step
from tests.helpers import devices, tiny, tiny_run
from tests.helpers.made_rows import batch_of, reasons, rows_of
from tests.helpers.small_tokenizers import tokenizer

T = 16
PLAIN = bert(1, 2, 8, vocab_size=264, max_length=T)
DROPPED = with_dropout(PLAIN, Rates(residual=0.3))
BYTES = tokenizer("byte")
ALONE, PAIRS = ContrastiveConfig(), ContrastiveConfig(pair="other")
HARD = ContrastiveConfig(pair="other", negative="opposite", temperature=0.2)
RECORDS = [
    {"text": "the fox", "other": "a red fox", "opposite": "no fox"},
    {"text": "the old dog", "other": "dogs", "opposite": "cats"},
    {"text": "run", "other": "to run fast", "opposite": "sleep"},
]


def vectors(model, params, inputs, pooling):
    """Embeddings by numpy."""
    hidden = np.asarray(model.apply({"params": params}, inputs, method="hidden").hidden_BTD, np.float64)
    real = np.asarray(inputs.sequence.segment_ids_BT != 0)
    pooled = [row[0] if pooling == "first" else row[here].mean(axis=0) for row, here in zip(hidden, real, strict=True)]
    return np.stack([one / np.linalg.norm(one) for one in pooled])


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("objective", [PAIRS, HARD], ids=["pairs", "hard negatives"])
def test_the_loss_is_that_of_finding_the_pair_among_all_of_the_batch(objective, pooling):
    objective = dataclasses.replace(objective, pooling=pooling)
    model = build(PLAIN)
    params = tiny.parameters(model)
    batch = batch_of(objective, PLAIN, BYTES, T, RECORDS, packed=True)
    total, metrics = jax.jit(lambda params: objective.loss(model, params, batch))(params)
    text, *others = (vectors(model, params, inputs, pooling) for inputs in batch.texts)
    scores = text @ np.concatenate(others).T / objective.temperature
    nats = np.log(np.exp(scores).sum(axis=1)) - np.diagonal(scores)
    assert float(total) == pytest.approx(nats.sum(), rel=1e-4)
    values = means(metrics)
    assert values["loss"] == pytest.approx(nats.mean(), rel=1e-4)
    assert values["accuracy"] == pytest.approx((scores.argmax(axis=1) == np.arange(3)).mean())


def test_texts_of_a_row_are_sequences_of_their_own():
    (first, *_) = rows_of(HARD, PLAIN, BYTES, T, RECORDS, packed=True)
    for number, text in enumerate(RECORDS[0].values()):
        real = first[f"text_{number}_segment_ids"] == 1
        assert first[f"text_{number}_tokens"][real].tolist() == [BYTES.bos_id, *text.encode(), 263]
    assert first["weights"] == 1 and len(rows_of(HARD, PLAIN, BYTES, T, RECORDS, packed=True)) == 3
    (row,) = rows_of(ALONE, PLAIN, BYTES, 6, [{"text": "abcdefgh"}], packed=True)
    assert row["text_0_tokens"].tolist() == [BYTES.bos_id, *b"abcd", 263]


@pytest.mark.parametrize("objective", [ALONE, HARD, dataclasses.replace(HARD, pooling="mean")])
def test_rows_of_padding_are_no_negatives_and_have_no_gradient(objective):
    model = build(PLAIN)
    params = tiny.parameters(model)
    batch = batch_of(objective, PLAIN, BYTES, T, RECORDS, packed=True)
    empty = {name: array[None] for name, array in objective.examples(PLAIN, BYTES, T).padding(T).items()}
    padded = jax.tree.map(lambda *x: np.concatenate(x), batch, *2 * [objective.batch(empty)])
    step = jax.jit(jax.value_and_grad(lambda params, batch: objective.loss(model, params, batch), has_aux=True))
    ((loss, metrics), gradient), ((more, _), other) = step(params, batch), step(params, padded)
    assert float(more) == pytest.approx(float(loss), rel=1e-6) and float(metrics["loss"].count) == 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient, other)


def test_a_text_and_itself_with_other_dropout_are_a_pair():
    model = build(DROPPED)
    params = tiny.parameters(model)
    batch = batch_of(ALONE, DROPPED, BYTES, T, RECORDS, packed=True)
    assert len(batch.texts) == 1
    (text,) = batch.texts
    twice = jax.tree.map(lambda x: np.repeat(x, 2, axis=0), text)

    def similarities(key):
        found = np.asarray(ALONE.embedded(model, params, twice, key)[0]).reshape(3, 2, -1)
        return found[:, 0] @ found[:, 1].T

    for key in (None, jax.random.key(0), jax.random.key(1)):
        scores = similarities(key)
        own = np.diagonal(scores)
        assert (own > 1 - 1e-5).all() if key is None else (own < 1 - 1e-3).all()
        loss, _ = ALONE.loss(model, params, batch, key)
        nats = np.log(np.exp(scores / 0.05).sum(axis=1)) - own / 0.05
        assert float(loss) == pytest.approx(nats.sum(), rel=1e-3, abs=1e-5)


def test_an_embedding_reads_all_of_its_own_text_and_nothing_else():
    model = build(PLAIN)
    params = tiny.parameters(model)
    batch = batch_of(dataclasses.replace(PAIRS, pooling="mean"), PLAIN, BYTES, T, RECORDS, packed=True)

    def embedded(x_BTE):
        inputs = batch.texts[0].replace(tokens_BT=None, features_BTE=x_BTE)
        return PAIRS.embedded(model, params, inputs)[0].sum(axis=1)

    x_BTE = jnp.asarray(np.random.default_rng(0).normal(size=(3, T, PLAIN.width)), jnp.float32)
    reads_BBT = np.abs(jax.jit(jax.jacrev(embedded))(x_BTE)).max(axis=-1) > 0
    real_BT = batch.texts[0].sequence.segment_ids_BT != 0
    np.testing.assert_array_equal(reads_BBT, np.eye(3, dtype=bool)[..., None] & real_BT)


@pytest.mark.slow
def test_a_batch_over_eight_devices_has_the_loss_of_one():
    found = devices.printed(devices.run("contrastive_devices"))
    assert (found["1"]["devices"], found["8"]["devices"]) == (1, 8)
    assert found["8"]["loss"] == pytest.approx(found["1"]["loss"], rel=1e-5)
    assert found["8"]["norm"] == pytest.approx(found["1"]["norm"], rel=1e-4)


def test_training_brings_pairs_together():
    model = build(PLAIN)
    words = ["fox", "dog", "run", "tree", "river", "London", "program"]
    records = [{"text": word, "other": word.upper()} for word in words]
    batch = batch_of(PAIRS, PLAIN, BYTES, T, records, packed=True)
    optimizer = AdamWConfig(peak_lr=1e-2, schedule=Constant()).build(40, boxed_parameters(model))
    state = initial_state(model, optimizer, 0, False)
    step, losses = jax.jit(train_step(model, PAIRS, optimizer, StepConfig(), 0)), []
    for _ in range(40):
        state, report = step(state, batch)
        losses.append(means(report.metrics)["loss"])
    # A model without a clue has log(7) = 1.95 nats.
    assert losses[-1] < 0.5 < 1.5 < losses[0], losses


def test_parts_of_a_batch_are_refused_unless_they_are_wanted(tmp_path):
    tiny_run.write_corpus(tmp_path)

    def experiment(objective=PAIRS, **changes):
        return tiny_run.experiment(
            tmp_path, objective=objective, model=bert(1, 2, 8, vocab_size=264), **{"update": StepConfig()} | changes
        )

    pmap = ShardingConfig(strategy=DataParallel(use_pmap=True))
    experiment()
    for changes in ({"update": StepConfig(accumulate=2)}, {"sharding": pmap}):
        with pytest.raises(ValueError, match="ContrastiveConfig compares the rows of a batch"):
            experiment(**changes)
        experiment(dataclasses.replace(PAIRS, negatives="microbatch"), **changes)


def test_records_without_a_text_are_reasons():
    assert reasons(HARD, PLAIN, BYTES, T, RECORDS[0]) == [None]
    (found,) = reasons(HARD, PLAIN, BYTES, T, {"text": "a", "other": "b"})
    assert "there is no field 'opposite'" in found
    assert reasons(PAIRS, PLAIN, BYTES, T, {"text": "a", "other": " "}) == ["field 'other' is empty"]
    assert list(PAIRS.texts(json.dumps(RECORDS[0]))) == ["the fox", "a red fox"]


def test_records_of_one_text_are_read_from_the_cache(tmp_path):
    texts = [f"text {number}" for number in range(20)]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in [*texts, ""]))
    source = JsonLinesConfig((str(tmp_path / "texts.jsonl"),), field=None)
    config = DataConfig(RecordsConfig(source, HashSplit(0.0, 0.0), invalid="skip"), T, batch_size=20)
    rows = next(config.build(BYTES, tmp_path / "cache", 0, ALONE.examples(PLAIN, BYTES, T)).train_iterator())
    (inputs,) = ALONE.batch(rows).texts
    read = zip(inputs.tokens_BT, inputs.sequence.segment_ids_BT, strict=True)
    assert {bytes(tokens[real == 1][1:-1].tolist()).decode() for tokens, real in read} == set(texts)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"negative": "opposite"}, "hard negatives require pairs"),
        ({"pair": "text"}, "must be different fields"),
        ({"pooling": "last"}, "pooling is 'last'"),
    ],
)
def test_fields_without_meaning_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ContrastiveConfig(**fields)


def test_models_that_do_not_fit_are_refused():
    ALONE.check(DROPPED, T)
    PAIRS.check(dataclasses.replace(PLAIN, head=None), T)
    with pytest.raises(ValueError, match="requires a bidirectional model"):
        PAIRS.check(tiny.tiny_llama(), T)
    with pytest.raises(ValueError, match="and the model has no dropout"):
        ALONE.check(PLAIN, T)


def test_flops_are_those_of_all_texts_without_the_head():
    bare = dataclasses.replace(PLAIN, head=None)
    two, three = (objective.training_flops(PLAIN, T) for objective in (PAIRS, HARD))
    assert ALONE.training_flops(PLAIN, T) == two == 2 / 3 * three == PAIRS.training_flops(bare, T)

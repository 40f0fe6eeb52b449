"""The sequence that is classified, what is measured of classes and numbers, and the losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.metrics import means
from llm_jax.data.record_examples import StructuredRecord
from llm_jax.data.record_rows import RecordRows
from llm_jax.models.build import build
from llm_jax.models.families.bert import bert
from llm_jax.models.families.encoder import sequence_head, span_head
from llm_jax.models.families.xlnet import last_head, xlnet
from llm_jax.objectives.classification import ClassificationConfig, Confusion, Correlation, RegressionConfig
from llm_jax.tokenizers import ByteTokenizerConfig
from tests.helpers import tiny

BYTES = ByteTokenizerConfig().build(lambda: (), None, "")
T, SEPARATOR = 16, 263
THREE = bert(1, 2, 8, vocab_size=264, max_length=T, head=sequence_head(3))
ONE = bert(1, 2, 8, vocab_size=264, max_length=T, head=sequence_head(1))


class Documents:
    """Records as `encode` made them."""

    def __init__(self, examples, records):
        self.encoded = examples.encode([StructuredRecord(f"{i}", one) for i, one in enumerate(records)], BYTES)
        self._names = examples.parts
        self.lengths = np.array([[len(part) for part in one] for one in self.encoded])

    def __getitem__(self, index):
        return dict(zip(self._names, map(np.asarray, self.encoded[index]), strict=True))


def reasons(objective, model, *records):
    examples = objective.examples(model, BYTES, T)
    return examples.encode([StructuredRecord("r", record) for record in records], BYTES)


def rows(objective, model, records):
    examples = objective.examples(model, BYTES, T)
    documents = Documents(examples, records)
    found = RecordRows(documents, np.arange(len(records)), examples, False, None)
    return [found[index] for index in range(len(records))]


def batch(objective, model, records):
    made = rows(objective, model, records)
    return objective.batch({name: np.stack([row[name] for row in made]) for name in made[0]})


def test_a_text_and_its_pair_are_one_sequence_of_two_types():
    (alone,) = rows(ClassificationConfig(), THREE, [{"text": "ab", "label": 1}])
    bos = BYTES.bos_id
    assert alone["tokens"][:4].tolist() == [bos, 97, 98, SEPARATOR] and alone["segment_ids"].sum() == 4
    assert not alone["types"].any() and alone["labels"] == 1 and alone["labels"].shape == ()
    (pair,) = rows(ClassificationConfig(pair="other"), THREE, [{"text": "ab", "other": "c", "label": 2}])
    assert pair["tokens"][:6].tolist() == [bos, 97, 98, SEPARATOR, 99, SEPARATOR]
    assert pair["types"][:6].tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [(20, 20, (7, 6)), (20, 3, (10, 3)), (3, 20, (3, 10)), (7, 7, (7, 6)), (6, 7, (6, 7))],
)
def test_the_longer_text_is_shortened_first(first, second, kept):
    record = {"text": "a" * first, "other": "b" * second, "label": 0}
    (row,) = rows(ClassificationConfig(pair="other"), THREE, [record])
    found = row["tokens"].tolist()
    assert sum(kept) <= 13 and (found.count(97), found.count(98)) == kept
    assert found.count(SEPARATOR) == 2


def test_labels_are_numbers_or_names_and_others_are_reasons():
    plain, named = ClassificationConfig(), ClassificationConfig(classes=("no", "yes", "?"))
    for objective, given, numbers in ((plain, (2, "1"), [2, 1]), (named, ("?", 0), [2, 0])):
        found = reasons(objective, THREE, *({"text": "a", "label": label} for label in given))
        assert [int(one[-1][0]) for one in found] == numbers
    for objective, label, reason in (
        (plain, 3, "label 3 is no class from 0 to 2"),
        (plain, -1, "label -1 is no class"),
        (plain, True, "label True is no class"),
        (plain, 1.0, "label 1.0 is no class"),
        (plain, "yes", "label 'yes' is no class"),
        (named, "maybe", "label 'maybe' is none of the classes no, yes, \\?"),
    ):
        (found,) = reasons(objective, THREE, {"text": "a", "label": label})
        assert isinstance(found, str) and reason.replace("\\", "") in found
    assert reasons(plain, THREE, {"text": "", "label": 0}) == ["field 'text' is empty"]
    assert "there is no field 'label'" in reasons(plain, THREE, {"text": "a"})[0]


def test_measures_of_two_classes_are_the_correlation_and_the_harmonic_mean():
    draw = np.random.default_rng(0)
    true, predicted = draw.integers(0, 2, 200), draw.integers(0, 2, 200)
    predicted = np.where(draw.random(200) < 0.6, true, predicted)
    counts = np.zeros((2, 2), np.float32)
    np.add.at(counts, (true, predicted), 1)
    found = Confusion(jnp.asarray(counts)).compute("classes")
    assert found["classes/matthews"] == pytest.approx(np.corrcoef(true, predicted)[0, 1])
    precision, recall = true[predicted == 1].mean(), predicted[true == 1].mean()
    assert found["classes/f1"] == pytest.approx(2 / (1 / precision + 1 / recall))


def test_measures_at_the_ends():
    perfect = Confusion(jnp.diag(jnp.array([3.0, 5.0, 1.0]))).compute("classes")
    assert perfect == {"classes/f1": 1.0, "classes/matthews": pytest.approx(1.0)}
    constant = Confusion(jnp.array([[3.0, 0], [5.0, 0]])).compute("classes")
    assert constant == {"classes/f1": 0.0, "classes/matthews": 0.0}
    assert Confusion(jnp.zeros((2, 2))).compute("classes") == {"classes/f1": 0.0, "classes/matthews": 0.0}


def test_the_loss_of_classes_is_a_mean_over_records():
    objective, model = ClassificationConfig(), build(THREE)
    params = tiny.parameters(model)
    found = batch(
        objective, THREE, [{"text": "ab", "label": 1}, {"text": "xyz", "label": 0}, {"text": "q", "label": 2}]
    )
    empty = {name: array[None] for name, array in objective.examples(THREE, BYTES, T).padding(T).items()}
    padded = jax.tree.map(lambda a, b: np.concatenate([a, b]), found, objective.batch(empty))
    loss, metrics = jax.jit(lambda params: objective.loss(model, params, padded))(params)
    logits = np.asarray(model.apply({"params": params}, found.inputs).logits_BTV)[:, 0]
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    nats = -log_p[np.arange(3), [1, 0, 2]]
    assert float(loss) == pytest.approx(nats.sum(), rel=1e-5)
    values = means(metrics)
    assert values["loss"] == pytest.approx(nats.mean(), rel=1e-5)
    assert values["accuracy"] == pytest.approx((logits.argmax(axis=1) == [1, 0, 2]).mean())


def test_numbers_are_exact_and_their_loss_is_the_squared_error():
    objective, model = RegressionConfig(), build(ONE)
    labels = [0.1, -2.5, 3e-7, 4]
    records = [{"text": "ab" * (i + 1), "label": label} for i, label in enumerate(labels)]
    found = batch(objective, ONE, records)
    np.testing.assert_array_equal(found.labels, np.float32(labels))
    params = tiny.parameters(model)
    loss, metrics = jax.jit(lambda params: objective.loss(model, params, found))(params)
    scores = np.asarray(model.apply({"params": params}, found.inputs).logits_BTV)[:, 0, 0]
    assert float(loss) == pytest.approx(np.square(scores - labels).sum(), rel=1e-5)
    assert means(metrics)["correlation"] == pytest.approx(np.corrcoef(scores, labels)[0, 1], abs=1e-3)
    nowhere = Correlation(*map(jnp.float32, (2, 2, 5, 2, 13, 5)))  # x is 1 twice
    assert nowhere.compute("correlation") == {"correlation": 0.0}
    for label, reason in (
        ("high", "no number"),
        (float("inf"), "not finite"),
        (None, "no number"),
        (True, "no number"),
    ):
        assert reason in reasons(objective, ONE, {"text": "a", "label": label})[0]


@pytest.mark.parametrize(
    ("objective", "model", "message"),
    [
        (ClassificationConfig(), tiny.tiny_llama(), "requires a bidirectional model"),
        (ClassificationConfig(), bert(1, 2, 8, vocab_size=264), "head of type ClassHead"),
        (ClassificationConfig(), bert(1, 2, 8, vocab_size=264, head=span_head()), "scores of each sequence, .* 'span'"),
        (ClassificationConfig(), ONE, "RegressionConfig trains a head with one output"),
        (RegressionConfig(), THREE, "model.head.classes is 3: regression has one output"),
        (ClassificationConfig(classes=("a", "b")), THREE, "has 2 names and model.head.classes is 3"),
        (ClassificationConfig(), xlnet(1, 2, 8, vocab_size=264, head=last_head(2)), "model.head.token is 'last'"),
    ],
)
def test_models_that_do_not_fit_are_refused(objective, model, message):
    with pytest.raises(ValueError, match=message):
        objective.check(model, T)

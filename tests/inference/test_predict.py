"""Predictions are what the model scores highest, in the order of the records, whatever is missing or wrong in them."""

import json

import numpy as np
import pytest

from llm_jax.data.record_examples import StructuredRecord
from llm_jax.inference.predict import predictions
from llm_jax.models.build import build
from llm_jax.models.families.bert import bert
from llm_jax.models.families.encoder import sequence_head, span_head
from llm_jax.models.heads import ClassHead
from llm_jax.objectives import (
    CausalLMConfig,
    ClassificationConfig,
    ContrastiveConfig,
    QuestionAnsweringConfig,
    RegressionConfig,
    TokenClassificationConfig,
)
from llm_jax.tokenizers import ByteTokenizerConfig
from tests.helpers import tiny
from tests.helpers.command_line import llm_jax

BYTES = ByteTokenizerConfig().build(lambda: (), None, "")
T = 24


def trained(objective, head):
    model = build(bert(1, 2, 8, vocab_size=264, max_length=T, head=head))
    return objective, model, tiny.parameters(model), BYTES


def found(model, records, **options):
    return list(predictions(*model, [StructuredRecord(f"{i}", one) for i, one in enumerate(records)], T, **options))


def test_labels_are_the_likeliest_classes_in_the_order_of_the_records():
    model = trained(ClassificationConfig(classes=("no", "yes", "?")), sequence_head(3))
    texts = [f"text {i} {'x' * i}" for i in range(7)]
    whole = found(model, [{"text": text} for text in texts], batch_size=3)
    for text, one in zip(texts, whole, strict=True):
        assert sum(one["probabilities"]) == pytest.approx(1) and len(one["probabilities"]) == 3
        assert one["label"] == ("no", "yes", "?")[int(np.argmax(one["probabilities"]))]
        (alone,) = found(model, [{"text": text, "label": "yes"}])
        np.testing.assert_allclose(alone["probabilities"], one["probabilities"], rtol=1e-5)
    assert len({one["label"] for one in whole}) > 1 or np.ptp([one["probabilities"][0] for one in whole]) > 1e-3


def test_records_without_an_example_have_the_reason_and_long_ones_a_note():
    model = trained(ClassificationConfig(), sequence_head(2))
    lines = found(model, [{"text": "a"}, {"other": 1}, {"text": "y" * 100}, {"text": ""}, {"text": "a"}], batch_size=2)
    assert "there is no field 'text'" in lines[1]["error"] and lines[3] == {"error": "field 'text' is empty"}
    assert lines[2]["truncated"] and "truncated" not in lines[0]
    np.testing.assert_allclose(lines[0]["probabilities"], lines[4]["probabilities"], rtol=1e-5)


def test_numbers_tags_and_embeddings():
    (number,) = found(trained(RegressionConfig(), sequence_head(1)), [{"text": "ab"}])
    assert isinstance(number["score"], float)
    tags = TokenClassificationConfig(classes=("O", "B"))
    (tagged,) = found(trained(tags, ClassHead(2)), [{"tokens": ["red", "fox", "runs"]}])
    assert len(tagged["tags"]) == 3 and set(tagged["tags"]) <= {"O", "B"}
    embedder = trained(ContrastiveConfig(pair="pair"), ClassHead(2))
    one, same, other = (line["embedding"] for line in found(embedder, [{"text": "a"}, {"text": "a"}, {"text": "bcd"}]))
    assert np.linalg.norm(one) == pytest.approx(1, rel=1e-5) and len(one) == 8
    np.testing.assert_allclose(one, same, rtol=1e-5)
    assert np.abs(np.array(one) - other).max() > 1e-3


def test_an_answer_is_a_part_of_the_context():
    model = trained(QuestionAnsweringConfig(), span_head())
    lines = found(model, [{"question": "who?", "context": "a fox runs"}, {"question": "who?", "context": "  "}])
    assert lines[0]["answer"] and lines[0]["answer"] in "a fox runs"
    assert lines[1] == {"error": "field 'context' is empty"}


def test_an_objective_that_predicts_no_part_of_a_record_is_refused():
    model = build(tiny.tiny_llama())
    with pytest.raises(ValueError, match="CausalLMConfig does not classify, tag.*llm-jax generate"):
        next(predictions(CausalLMConfig(), model, tiny.parameters(model), BYTES, [], 8))


FILE = '''"""Labels short texts."""

from pathlib import Path

from llm_jax.data import DataConfig, HashSplit, JsonLinesConfig, RecordsConfig
from llm_jax.experiment import Experiment
from llm_jax.models.families.bert import bert
from llm_jax.models.families.encoder import sequence_head
from llm_jax.objectives import ClassificationConfig
from llm_jax.optim import AdamWConfig
from llm_jax.tokenizers import ByteTokenizerConfig


def experiment():
    source = JsonLinesConfig((str(Path(__file__).parent / "texts.jsonl"),), field=None)
    return Experiment(
        name="labels",
        steps=40,
        tokenizer=ByteTokenizerConfig(),
        data=DataConfig(RecordsConfig(source, HashSplit(0.1, 0.0)), sequence_length=16, batch_size=16),
        model=bert(1, 2, 32, vocab_size=260, max_length=16, head=sequence_head(2)),
        objective=ClassificationConfig(classes=("vowel", "consonant")),
        optimizer=AdamWConfig(peak_lr=5e-3),
    )
'''


def test_the_command_labels_what_the_run_has_learnt(tmp_path):
    draw = np.random.default_rng(0)
    letters = draw.choice(list("aeioubcdfg"), 300)
    kinds = ["vowel" if letter in "aeiou" else "consonant" for letter in letters]
    texts = [f"{letter} x{number % 10}" for number, letter in enumerate(letters)]
    records = [{"text": text, "label": kind} for text, kind in zip(texts, kinds, strict=True)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "labels.py").write_text(FILE)
    outcome = llm_jax("train", tmp_path / "labels.py", "--runs-dir", tmp_path, "--cache-dir", tmp_path / "cache")
    assert outcome.code == 0, outcome.said
    (tmp_path / "new.csv").write_text("text\na x1\ng x2\n")
    outcome = llm_jax("predict", tmp_path / "labels", tmp_path / "new.csv", "--output", tmp_path / "out.jsonl")
    assert outcome.code == 0 and "2 predictions" in outcome.out, outcome.said
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == ["vowel", "consonant"]
    printed = llm_jax("predict", tmp_path / "labels", tmp_path / "new.csv").out.splitlines()
    assert [json.loads(line) for line in printed] == lines
    refused = llm_jax("generate", tmp_path / "labels", "--prompt", "a")
    assert refused.code == 1 and "llm-jax predict" in refused.said

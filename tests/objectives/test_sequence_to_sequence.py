"""Targets are shifted within their own pair, a target reads its own source only, and the loss is that of the pairs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.metrics import means
from llm_jax.core.run_directory import RunDirectory
from llm_jax.data.record_rows import RecordRows
from llm_jax.models.build import build
from llm_jax.models.families.bart import original
from llm_jax.models.families.t5 import t5
from llm_jax.objectives.sequence_to_sequence import SequenceToSequenceConfig
from llm_jax.tokenizers import ByteTokenizerConfig
from llm_jax.trained_model import TrainedModel
from tests.helpers import tiny
from tests.helpers.command_line import llm_jax

CONFIG = original(1, 2, 8, vocab_size=264, max_length=24)
BYTES = ByteTokenizerConfig().build(lambda: (), None, "")
PAIRS = [([1, 2, 3], [11, 12]), ([4, 5], [13, 14, 15, 16]), ([6], [17])]


class Documents:
    """Records that are tokenised already."""

    def __init__(self, pairs):
        self.lengths = np.array([[len(source), len(target)] for source, target in pairs])
        self._pairs = pairs

    def __getitem__(self, index):
        return dict(zip(("source", "target"), map(np.array, self._pairs[index]), strict=True))


def rows(pairs, packed, objective, length=16):
    examples = objective.examples(CONFIG, BYTES, length)
    found = RecordRows(Documents(pairs), np.arange(len(pairs)), examples, packed, None)
    return [found[index] for index in range(found.rows_per_epoch)]


def batch(pairs, packed, objective=SequenceToSequenceConfig(start="bos")):  # noqa: B008
    made = rows(pairs, packed, objective)
    return objective.batch({name: np.stack([row[name] for row in made]) for name in made[0]})


@pytest.mark.parametrize("start", ["pad", "bos", "eos"])
def test_the_decoder_reads_the_start_and_then_its_own_targets(start):
    found = batch(PAIRS, True, SequenceToSequenceConfig(start=start))
    eos, first = BYTES.eos_id, getattr(BYTES, f"{start}_id")
    assert found.targets_BT[0, :10].tolist() == [11, 12, eos, 13, 14, 15, 16, eos, 17, eos]
    assert found.inputs.tokens_BT[0, :10].tolist() == [first, 11, 12, first, 13, 14, 15, 16, first, 17]
    assert found.inputs.encoder.tokens_BT[0, :9].tolist() == [1, 2, 3, eos, 4, 5, eos, 6, eos]
    assert found.loss_weights_BT[0].tolist() == [1.0] * 10 + [0.0] * 6


def test_pairs_of_a_row_have_the_losses_that_they_have_alone():
    model = build(CONFIG)
    params, objective = tiny.parameters(model), SequenceToSequenceConfig(start="bos")
    loss = jax.jit(lambda params, batch: objective.loss(model, params, batch))
    together, metrics = loss(params, batch(PAIRS, True))
    alone, _ = loss(params, batch(PAIRS, False))
    assert float(together) == pytest.approx(float(alone), rel=1e-5)
    assert means(metrics)["loss"] == pytest.approx(float(together) / 10, rel=1e-6)


def test_a_target_reads_its_source_and_the_targets_before_it():
    model, found = build(CONFIG), batch(PAIRS, True)
    params = tiny.parameters(model)
    width = CONFIG.decoder.width

    def scores(source_BSE, target_BTE):
        encoder = found.inputs.encoder.replace(tokens_BT=None, features_BTE=source_BSE)
        inputs = found.inputs.replace(tokens_BT=None, features_BTE=target_BTE, encoder=encoder)
        return jnp.sin(model.apply({"params": params}, inputs).logits_BTV[0]).sum(axis=-1)

    draw = np.random.default_rng(0)
    arrays = [jnp.asarray(draw.normal(size=(1, 16, width)), jnp.float32) for _ in range(2)]
    of_source, of_target = jax.jit(jax.jacrev(scores, argnums=(0, 1)))(*arrays)
    reads_source, reads_target = (np.abs(x[:, 0]).max(axis=-1) > 0 for x in (of_source, of_target))
    pair_of_target = np.repeat([1, 2, 3, 0], [3, 5, 2, 6])
    pair_of_source = np.repeat([1, 2, 3, 0], [4, 3, 2, 7])
    real = pair_of_target != 0
    same = pair_of_target[:, None] == pair_of_source[None]
    np.testing.assert_array_equal(reads_source[real], same[real])
    before = (pair_of_target[:, None] == pair_of_target[None]) & (np.arange(16)[:, None] >= np.arange(16)[None])
    np.testing.assert_array_equal(reads_target[real], before[real])


def test_label_smoothing_is_that_of_torch():
    torch = pytest.importorskip("torch")
    model, smoothed = build(CONFIG), SequenceToSequenceConfig(start="bos", label_smoothing=0.1)
    params, found = tiny.parameters(model), batch(PAIRS, True)
    total, metrics = jax.jit(lambda params: smoothed.loss(model, params, found))(params)
    logits = np.asarray(model.apply({"params": params}, found.inputs).logits_BTV)[0, :10]
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits),
        torch.tensor(found.targets_BT[0, :10]).long(),
        label_smoothing=0.1,
        reduction="sum",
    )
    assert float(total) == pytest.approx(float(expected), rel=1e-5)
    plain = SequenceToSequenceConfig(start="bos").loss(model, params, found)[0]
    values = means(metrics)
    assert values["loss"] == pytest.approx(float(plain) / 10, rel=1e-5)
    assert values["smoothed_loss"] == pytest.approx(float(total) / 10, rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "text", "target": "text"}, "are both 'text'"),
        ({"source_length": 0}, "source_length is 0"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0: it must be at least 0 and below 1"),
        ({"start": "sep"}, "start is 'sep'"),
    ],
)
def test_fields_without_meaning_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SequenceToSequenceConfig(**fields)


def test_a_source_that_is_longer_than_the_encoder_is_refused():
    objective = SequenceToSequenceConfig(source_length=100)
    with pytest.raises(ValueError, match="sequences of 100 tokens .* and model.max_length is 24"):
        objective.check(t5(1, 2, 8, hidden=16, vocab_size=264, max_length=24), 16)
    with pytest.raises(ValueError, match="trains encoder-decoders and model is of type TransformerConfig"):
        SequenceToSequenceConfig().check(tiny.tiny_llama(), 16)


FILE = '''"""Copies a word in capitals."""

from pathlib import Path

from llm_jax.checkpoints.checkpoint_config import CheckpointConfig
from llm_jax.data import DataConfig, HashSplit, JsonLinesConfig
from llm_jax.data.structured_records import RecordsConfig
from llm_jax.evals import PerplexityConfig
from llm_jax.experiment import Experiment
from llm_jax.models.families.bart import original
from llm_jax.objectives.sequence_to_sequence import SequenceToSequenceConfig
from llm_jax.optim import AdamWConfig, Constant
from llm_jax.tokenizers import TrainSentencePieceConfig


def experiment():
    source = JsonLinesConfig((str(Path(__file__).parent / "words.jsonl"),), field=None)
    return Experiment(
        name="words",
        steps=40,
        tokenizer=TrainSentencePieceConfig(280),
        data=DataConfig(RecordsConfig(source, HashSplit(0.1, 0.0), too_long="truncate"), 32, batch_size=8),
        model=original(1, 2, 32, hidden=64, vocab_size=280, max_length=32),
        objective=SequenceToSequenceConfig(source="word", target="capitals", start="bos"),
        optimizer=AdamWConfig(peak_lr=1e-2, schedule=Constant(warmup_steps=5)),
        checkpoint=CheckpointConfig(every=25),
        evaluations=(PerplexityConfig(every=20),),
        log_every=1,
    )
'''


def test_a_run_learns_from_records_and_resumes(tmp_path):
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdef"), draw.integers(2, 6))) for _ in range(300)]
    words[0] = "abcdef" * 20  # longer than a row
    lines = [json.dumps({"word": word, "capitals": word.upper(), "comment": "q" * 9}) for word in words]
    (tmp_path / "words.jsonl").write_text("\n".join(lines))
    (tmp_path / "words.py").write_text(FILE)
    command = ("train", tmp_path / "words.py", "--runs-dir", tmp_path / "runs", "--cache-dir", tmp_path / "cache")
    outcome = llm_jax(*command)
    assert outcome.code == 0, outcome.said
    run = RunDirectory(tmp_path / "runs" / "words")
    losses = {record["step"]: record["loss"] for record in run.records() if record["kind"] == "train"}
    # Of six capitals and the end a model that knows nothing of the source has about 1.9 nats.
    assert losses[1] > 4 and np.mean([losses[step] for step in range(36, 41)]) < 2.2
    (counts,) = (record for record in run.records() if record["kind"] == "data")
    parts = ("train", "validation")
    assert sum(counts[f"{part}/records"] for part in parts) == 300 and not counts["train/invalid"]
    assert sum(counts[f"{part}/truncated"] for part in parts) == 1 and "1 truncated in " in outcome.said
    held_out = [record for record in run.records() if record["kind"] == "eval/validation"]
    assert held_out[-1]["loss"] < held_out[0]["loss"] and "bits_per_byte" not in held_out[-1]
    # The tokenizer was trained on the fields that are read: a run of q is no piece.
    assert len(TrainedModel.of(run).tokenizer.encode("q" * 9)) == 9
    assert llm_jax(*command, "--step", 25).code == 0
    assert {record["step"]: record["loss"] for record in run.records() if record["kind"] == "train"} == losses

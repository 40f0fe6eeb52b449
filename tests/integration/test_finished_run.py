import shutil

import pytest

from llm_jax.checkpoints.restore import best_step
from llm_jax.core.run_directory import RunDirectory
from llm_jax.data import MarkovConfig, MixtureConfig, WeightedSource
from llm_jax.evals import PerplexityConfig
from llm_jax.training_run import run_training
from tests.helpers import tiny_run
from tests.helpers.command_line import llm_jax
from tests.integration.outcome import starts


@pytest.fixture
def again(finished, tmp_path):
    """A copy of a complete run, and the command that made it."""
    shutil.copytree(finished.path, tmp_path / "tiny")
    file = finished.path.parent / "lab" / "tiny_experiment.py"
    words = ("train", file, "--runs-dir", tmp_path, "--evaluations.0.test")
    return RunDirectory(tmp_path / "tiny"), words


def tiny_texts(run, part):
    return [document.text for document in run.experiment().data.text(part)]


def test_the_same_command_again_changes_no_figure_and_says_where_the_report_is(again, cache):
    run, words = again
    before = {path: path.read_bytes() for path in (run.metrics_file, run.experiment_file, run.path / "card.json")}
    saved = sorted(path.name for path in run.checkpoints.iterdir())
    outcome = llm_jax(*words, "--cache-dir", cache)
    assert outcome.code == 0
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in run.checkpoints.iterdir()) == saved
    assert str(run.report) in outcome.out and f"llm-jax generate {run.path} --prompt" in outcome.out
    assert "loss" not in outcome.said, "it trained again"


def test_a_complete_run_leaves_all_that_a_run_leaves(finished):
    names = {path.name for path in finished.path.iterdir()}
    assert names >= {"experiment.txt", "card.json", "metrics.jsonl", "tensorboard", "checkpoints", "report.md"}
    kinds = {record["kind"] for record in finished.records()}
    assert kinds == {"train", "eval/validation", "eval/test"}
    start = finished.card()["starts"][0]
    assert start["data"]["source"]["train"]["documents"] > 10
    train, test = (tiny_texts(finished, part) for part in ("train", "test"))
    counts = start["data"]["documents"]["test"]
    assert (counts["documents"], counts["in_train"]) == (len(test), sum(text in train for text in test))
    assert start["data"]["duplicates_left_out"] == start["data"]["empty_texts"] == 0
    assert start["model"]["active_parameters"] == start["model"]["parameters"] > 1000 and start["device_kind"]
    assert starts(finished) == [None]


def test_held_out_bits_per_byte_count_all_the_text(finished):
    manifest = finished.card()["starts"][0]["data"]["source"]["test"]
    (record,) = [record for record in finished.records() if record["kind"] == "eval/test"]
    # Every token is a target once, but for the beginnings of documents, which are given.
    assert record["targets"] == manifest["tokens"] - manifest["documents"]
    bits = record["loss"] * record["targets"] / 0.6931471805599453
    assert record["bits_per_byte"] == pytest.approx(bits / manifest["text_bytes"], rel=1e-5)


def test_the_last_checkpoint_knows_its_loss_so_that_it_can_be_the_best(tmp_path, cache, finished):
    # The last update, 12, is saved as a multiple of 2 and evaluated because the run ends there.
    file = finished.path.parent / "lab" / "tiny_experiment.py"
    words = ("--runs-dir", tmp_path, "--cache-dir", cache, "--evaluations.0.every", 5, "--checkpoint.every", 2)
    assert llm_jax("train", file, *words).code == 0
    run = RunDirectory(tmp_path / "tiny")
    losses = {record["step"]: record["loss"] for record in run.records() if record["kind"] == "eval/validation"}
    assert list(losses) == [5, 10, 12] and min(losses, key=losses.get) == 12
    assert best_step(run.checkpoints.absolute(), "validation/loss") == 12


def test_the_test_parts_of_a_mixture_are_scored_once(tmp_path, cache):
    sources = tuple(WeightedSource(name, MarkovConfig(symbols=4, evaluation_rows=4)) for name in ("one", "two"))
    experiment = tiny_run.experiment(tmp_path, tokenizer=None, steps=4, evaluations=(PerplexityConfig(test=True),))
    experiment = tiny_run.with_source(experiment, MixtureConfig(sources))
    for _ in range(2):
        run = run_training(experiment, tmp_path, cache)
    lines = run.metrics_file.read_text().splitlines()
    assert sum('"eval/test/one"' in line for line in lines) == 1

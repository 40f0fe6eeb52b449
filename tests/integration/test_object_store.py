"""A run at gs:// from its first step to its report: `tests/helpers/object_store.py` stands for the store."""

import pytest

from llm_jax.checkpoints.restore import COMMITTED, saved_steps
from llm_jax.core.paths import at
from llm_jax.core.run_directory import RunDirectory
from tests.helpers import object_store
from tests.helpers.command_line import llm_jax
from tests.integration.outcome import records, starts

RATE = ("--optimizer.schedule", "inverse-sqrt")


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    object_store.install(tmp_path / "store", monkeypatch)
    return tmp_path / "store" / "bucket"


@pytest.mark.slow
def test_a_run_is_trained_resumed_asked_and_reported_at_gs(file, tmp_path, cache, bucket):
    def train(runs, steps, *words):
        return llm_jax("train", file, "--runs-dir", runs, "--cache-dir", cache, "--steps", steps, *RATE, *words)

    runs = "gs://bucket/runs"
    run, whole = RunDirectory(at(f"{runs}/tiny")), RunDirectory(tmp_path / "whole" / "tiny")
    outcome = train(runs, 5)
    assert outcome.code == 0, outcome.said
    assert saved_steps(run.checkpoints) == (5,)
    names = {path.name for path in run.path.iterdir()}
    assert names >= {"experiment.txt", "card.json", "metrics.jsonl", "tensorboard", "checkpoints", "report.md", "plots"}
    assert names.isdisjoint({"lock.json"})

    # A save that a kill cut short is no checkpoint, and is in the way of none.
    partial = bucket / "runs" / "tiny" / "checkpoints" / "7" / "state" / "array"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"half")
    assert saved_steps(run.checkpoints) == (5,)

    assert train(runs, 8).code == 0 and train(tmp_path / "whole", 8).code == 0
    assert starts(run) == [None, 5] and not partial.exists()
    assert saved_steps(run.checkpoints) == (5, 8)
    assert (run.checkpoints / "8" / COMMITTED).exists()
    trained = lambda one: [record for record in records(one) if record["kind"] == "train"]  # noqa: E731
    assert trained(run) == trained(whole) and len(trained(run)) == 8

    outcome = llm_jax("generate", run.path, "--prompt", "the red", "--new-tokens", 4)
    assert outcome.code == 0 and outcome.out.startswith("the red")
    run.report.unlink()
    assert llm_jax("report", run.path).code == 0
    assert "loss" in run.report.read_text() and any(run.plots.iterdir())

    outcome = train(runs, 8, "--name", "branch", "--from", "tiny:5")
    assert outcome.code == 0, outcome.said
    assert trained(RunDirectory(at(f"{runs}/branch"))) == trained(run)[5:]
    outcome = train(runs, 8, "--step", 5)
    assert outcome.code == 0, outcome.said
    assert trained(run) == trained(whole)
    assert {path.name for path in run.checkpoints.iterdir()} >= {"5", "8", "later-8"}
    outcome = train(runs, 5, "--fresh")
    assert outcome.code == 0 and saved_steps(run.checkpoints) == (5,) and starts(run) == [None], outcome.said

"""Runs that are extended, that go back to an earlier checkpoint, and that begin as a branch of another."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import training_run
from llm_jax.assemble import assemble
from llm_jax.branch import Branch
from llm_jax.checkpoints.checkpoint_config import CheckpointConfig
from llm_jax.checkpoints.manager import Checkpoints
from llm_jax.checkpoints.record import Identity
from llm_jax.checkpoints.restore import saved_steps
from llm_jax.core import config_text
from llm_jax.core.run_directory import RunDirectory
from llm_jax.evals import PerplexityConfig
from llm_jax.experiment import SampleConfig
from llm_jax.optim import WSD, Constant, Cosine, InverseSqrt, Linear
from llm_jax.resumption import changes
from llm_jax.training_run import run_training
from tests.helpers import tiny_run
from tests.helpers.command_line import llm_jax
from tests.integration.outcome import assert_identical, final, records, starts

STEPS = 12


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("branches")
    tiny_run.write_corpus(folder)
    return folder


def _with_schedule(experiment, schedule, **changes):
    optimizer = dataclasses.replace(experiment.optimizer, schedule=schedule)
    return dataclasses.replace(experiment, optimizer=optimizer, **changes)


@pytest.fixture(scope="module")
def parts(lab, cache):
    """With a schedule that does not know the number of steps, so that runs of any length share their programs."""
    return assemble(_with_schedule(tiny_run.experiment(lab, steps=STEPS), Constant(warmup_steps=2)), cache)


@pytest.fixture
def train(monkeypatch, parts, cache):
    """Trains the experiment of `parts` with some fields changed."""

    def train(runs, branch=None, step=None, programs=parts.programs, **changed) -> RunDirectory:
        experiment = dataclasses.replace(parts.experiment, **changed)
        used = dataclasses.replace(parts, experiment=experiment, programs=programs)
        monkeypatch.setattr(training_run, "assemble", lambda *_: used)
        branch = Branch.named(branch, runs) if branch else None
        return run_training(experiment, runs, cache, step=step, branch=branch)

    return train


@pytest.fixture(scope="module")
def uninterrupted(lab, parts, cache):
    return run_training(parts.experiment, lab / "uninterrupted", cache)


def _assert_same_end(one: RunDirectory, other: RunDirectory, parts) -> None:
    a, b = final(one, parts), final(other, parts)
    assert a.data == b.data
    for x, y in zip(jax.tree.leaves(a.state), jax.tree.leaves(b.state), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_a_run_made_longer_is_the_longer_run_bit_for_bit(uninterrupted, train, tmp_path, parts):
    evaluations = (PerplexityConfig(every=6, max_bytes=300, test=True),)
    run = train(tmp_path, steps=6, evaluations=evaluations)
    assert ("eval/test", 6) in {(record["kind"], record["step"]) for record in records(run)}
    train(tmp_path, evaluations=evaluations)
    _assert_same_end(run, uninterrupted, parts)
    found = {(record["kind"], record["step"]): record for record in records(run)}
    assert {("eval/test", 6), ("eval/test", 12)} <= found.keys(), "the end of the longer run is scored as well"
    for record in records(uninterrupted):
        assert found[record["kind"], record["step"]] == record
    card = run.card()["starts"][-1]
    assert card["changes"] == ["steps: 6 -> 12"] and card["resumed_from"] == 6
    assert run.experiment().steps == 12


def test_what_decides_nothing_may_change_and_the_card_has_it(uninterrupted, train, tmp_path, parts):
    train(tmp_path, steps=6)
    changed = {
        "log_every": 2,
        "evaluations": (PerplexityConfig(every=4, max_bytes=300),),
        "checkpoint": CheckpointConfig(every=3, keep_last=3, best_metric="validation/bits_per_byte"),
        "samples": SampleConfig(prompts=("the ",), every=6, new_tokens=2),
    }
    run = train(tmp_path, **changed)
    _assert_same_end(run, uninterrupted, parts)
    listed = run.card()["starts"][-1]["changes"]
    assert {line.split(":")[0].split(".")[0] for line in listed} == {"steps", *changed}
    assert "log_every: 1 -> 2" in listed and "checkpoint.every: 5 -> 3" in listed
    with pytest.raises(ValueError, match="another experiment") as caught:
        train(tmp_path, seed=1, log_every=1)
    assert "seed: 0 -> 1" in str(caught.value) and "log_every" not in str(caught.value)


EXTENDED = [
    (Constant(warmup_steps=2), 12, True),
    (InverseSqrt(warmup_steps=2), 12, True),
    (Cosine(warmup_steps=2, decay_steps=9), 12, True),
    (Cosine(warmup_steps=2), 2, True),
    (Cosine(warmup_steps=2), 3, True),  # the third update, at the peak, is the same in a run of any length
    (Cosine(warmup_steps=2), 4, False),
    (Linear(warmup_steps=2), 12, False),
    (WSD(warmup_steps=2, decay_fraction=0.5), 6, True),
    (WSD(warmup_steps=2, decay_fraction=0.5), 7, True),
    (WSD(warmup_steps=2, decay_fraction=0.5), 8, False),
]


@pytest.mark.parametrize(("schedule", "made", "allowed"), EXTENDED)
def test_a_run_is_extended_where_its_updates_had_the_rates_of_the_longer_run(lab, schedule, made, allowed):
    short = _with_schedule(tiny_run.experiment(lab, steps=12), schedule)
    long = dataclasses.replace(short, steps=20)
    rates = [np.asarray(one.optimizer.learning_rate(one.steps)(np.arange(made))) for one in (short, long)]
    assert np.array_equal(*rates) == allowed
    if allowed:
        assert changes(config_text.to_text(short), long, made, "the run") == ["steps: 12 -> 20"]
        return
    with pytest.raises(ValueError, match=r"the run is of a run of 12 steps \(steps: 12 -> 20\): the schedule depends"):
        changes(config_text.to_text(short), long, made, "the run")


def test_a_run_is_not_shortened(lab):
    experiment = tiny_run.experiment(lab, steps=12)
    with pytest.raises(ValueError, match=r"steps: 12 -> 9\): a run can be extended but not shortened"):
        changes(config_text.to_text(experiment), dataclasses.replace(experiment, steps=9), 5, "the run")


def test_going_back_repeats_the_run_and_keeps_what_came_after(uninterrupted, train, tmp_path, parts):
    run = train(tmp_path)
    (run.path / "samples").mkdir()
    (run.path / "samples" / "step_00000011.md").write_text("a sample")
    later = [record for record in records(run) if record["step"] > 10]
    train(tmp_path, step=10)
    assert_identical(run, uninterrupted, parts)
    assert saved_steps(run.checkpoints)[-1] == 12 and (run.checkpoints / "later-12").is_dir()
    kept = (run.path / "metrics.later-than-10.jsonl").read_text().splitlines()
    assert [(json.loads(line)["kind"], json.loads(line)["step"]) for line in kept] == [
        (record["kind"], record["step"]) for record in later
    ]
    assert (run.path / "samples" / "later-step_00000011.md").read_text() == "a sample"
    card = run.card()["starts"][-1]
    assert (card["resumed_from"], card["went_back_to"]) == (10, 10) and "checkpoint 12" in card["set_aside"]
    with pytest.raises(ValueError, match=r"no checkpoint of step 7 that can be read: choose one of \["):
        train(tmp_path, step=7)
    with pytest.raises(ValueError, match="--step resumes a run and --fresh deletes it"):
        run_training(parts.experiment, tmp_path, tmp_path, fresh=True, step=10)


def test_a_requeued_job_goes_back_once(train, tmp_path, monkeypatch):
    run = train(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    train(tmp_path, step=10)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    train(tmp_path, step=10)
    assert starts(run) == [None, 10] and not (run.checkpoints / "later-12-2").exists()


def test_a_branch_without_changes_is_the_run_bit_for_bit(uninterrupted, train, tmp_path, parts):
    train(tmp_path, steps=6)
    before = {path: path.read_bytes() for path in (tmp_path / "tiny").rglob("*") if path.is_file()}
    branch = train(tmp_path, branch="tiny:5", name="branch")
    _assert_same_end(branch, uninterrupted, parts)
    assert records(branch) == [record for record in records(uninterrupted) if record["step"] > 5]
    assert before == {path: path.read_bytes() for path in (tmp_path / "tiny").rglob("*") if path.is_file()}
    card = branch.card()["starts"][0]
    assert (card["source"]["run"], card["source"]["step"]) == (str(tmp_path / "tiny"), 5)
    assert card["changes"] == ['name: "tiny" -> "branch"', "steps: 6 -> 12"] and card["resumed_from"] is None
    train(tmp_path, branch="tiny:5", name="branch")  # the same command resumes
    assert starts(branch) == [None]
    with pytest.raises(ValueError, match="started from .*'step': 5.* and not from .*tiny:6"):
        train(tmp_path, branch="tiny:6", name="branch")


def test_a_branch_with_another_rate_continues_with_state_and_data(uninterrupted, train, tmp_path, lab, parts, cache):
    optimizer = dataclasses.replace(parts.experiment.optimizer, peak_lr=1e-3)
    slower = dataclasses.replace(parts.experiment, optimizer=optimizer)
    programs = assemble(slower, cache).programs
    train(tmp_path, steps=6)
    branch = train(tmp_path, branch=str(tmp_path / "tiny"), name="slower", programs=programs, optimizer=optimizer)
    first, *_ = [record for record in records(branch) if record["kind"] == "train"]
    (former,) = [record for record in records(uninterrupted) if (record["kind"], record["step"]) == ("train", 7)]
    # The loss of the first update is that of the same weights on the same batch; only what is made of it differs.
    assert first["step"] == 7 and first["loss"] == former["loss"]
    assert first["gradient_norm"] == former["gradient_norm"] and first["learning_rate"] != former["learning_rate"]
    assert final(branch, parts).data == final(uninterrupted, parts).data
    assert "optimizer.peak_lr: 0.01 -> 0.001" in branch.card()["starts"][0]["changes"]


def test_a_branch_is_refused_where_its_data_would_be_others(train, tmp_path, parts):
    run = train(tmp_path, steps=6)
    data = parts.experiment.data
    for changed, path in (
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"data": dataclasses.replace(data, batch_size=8)}, "data.batch_size: 4 -> 8"),
        ({"steps": 6}, "6 are complete"),
    ):
        with pytest.raises(ValueError, match=f"--from .*{path}"):
            train(tmp_path, branch="tiny", name="branch", **changed)
    assert not (tmp_path / "branch").exists()
    with pytest.raises(ValueError, match="is the run itself"):
        train(tmp_path, branch="tiny")
    for name, message in (("absent", "neither absent nor"), ("tiny:3", r"no checkpoint of step 3.*\[5, 6\]")):
        with pytest.raises(ValueError, match=message):
            Branch.named(name, tmp_path)
    train(tmp_path, branch="tiny", name="branch", data=dataclasses.replace(data, read_ahead=0))
    assert run.card()["starts"][-1]["ended"]["how"] == "finished"


def test_a_checkpoint_that_is_not_finite_is_reported_before_training(uninterrupted, train, tmp_path, parts):
    run = train(tmp_path, steps=6)
    found = final(run, parts, 6)
    bad = found.state.replace(ema=jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), found.state.ema))
    identity = Identity(found.run.experiment, found.run.tokenizer, found.run.data, found.run.source)
    with Checkpoints(run.checkpoints, CheckpointConfig(keep_last=3), identity) as checkpoints:
        checkpoints.save(7, bad, found.data, found.loop)
    before = run.metrics_file.read_bytes()
    with pytest.raises(ValueError, match=r"checkpoint 7 in .* not finite in .* arrays: ema/.*--step or --from"):
        train(tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint 7 in .*tiny.* not finite"):
        train(tmp_path, branch="tiny", name="branch")
    assert run.metrics_file.read_bytes() == before and starts(run) == [None]
    train(tmp_path, step=6)
    _assert_same_end(run, uninterrupted, parts)


def test_the_command_line_branches_and_goes_back(lab, tmp_path, cache):
    file = lab / "experiment.py"
    file.write_text(tiny_run.FILE)
    words = ("train", file, "--runs-dir", tmp_path, "--cache-dir", cache)
    assert llm_jax(*words, "--evaluations.0.every", 5).code == 0
    outcome = llm_jax(*words, "--name", "b", "--from", "tiny:5", "--optimizer.peak-lr", 1e-3)
    assert outcome.code != 0 and "tiny has no checkpoint of step 5" in outcome.said.replace(f"{tmp_path}/", "")
    outcome = llm_jax(*words, "--name", "b", "--from", "tiny:10", "--optimizer.peak-lr", 1e-3)
    assert outcome.code == 0, outcome.said
    assert min(record["step"] for record in RunDirectory(tmp_path / "b").records()) == 11
    outcome = llm_jax(*words, "--step", 10)
    assert outcome.code == 0 and starts(RunDirectory(tmp_path / "tiny")) == [None, 10], outcome.said
    outcome = llm_jax(*words, "--steps", 20)
    assert outcome.code != 0 and "the learning rate of step" in outcome.said and "--from RUN:STEP" in outcome.said
    for options in (("--best", "--step", 10), ("--step", 3)):
        assert llm_jax("generate", tmp_path / "tiny", "--prompt", "a", *options).code != 0

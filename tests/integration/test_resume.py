"""Stopping and resuming inside one process, after every update there is; test_signals.py does it from outside."""

import contextlib
import dataclasses
import os
import random
import shutil
import signal
import threading
import time

import pytest

from llm_jax import training_run
from llm_jax.assemble import assemble
from llm_jax.checkpoints.manager import Checkpoints
from llm_jax.checkpoints.restore import saved_steps
from llm_jax.core.run_directory import RunDirectory
from llm_jax.core.run_lock import RunHeld
from llm_jax.training_run import run_training
from tests.helpers import tiny_run
from tests.integration.outcome import assert_identical, records, starts

STEPS = 12


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    tiny_run.write_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def parts(lab, cache):
    """Assembled once, so that all runs share their compiled programs."""
    return assemble(tiny_run.experiment(lab, steps=STEPS), cache)


def before_each_update(parts, act):
    """`parts` whose updates call `act(state)` before they begin."""

    class Step:
        lower = staticmethod(parts.programs.step.lower)

        def __call__(self, state, batch):
            act(state)
            return parts.programs.step(state, batch)

    return dataclasses.replace(parts, programs=dataclasses.replace(parts.programs, step=Step()))


@pytest.fixture
def train(monkeypatch, parts, cache):
    """Starts or resumes the run in a folder; a signal comes while update `stop` is made, or `moment` seconds after the
    first."""

    def train(runs, stop=None, moment=None, experiment=parts.experiment, **options) -> RunDirectory:
        timers = []

        def send(state):
            if int(state.step) + 1 == stop:
                signal.raise_signal(signal.SIGTERM)
            if moment is not None and not timers:
                timers.append(threading.Timer(moment, os.kill, (os.getpid(), signal.SIGTERM)))
                timers[0].start()

        changed = dataclasses.replace(before_each_update(parts, send), experiment=experiment)
        monkeypatch.setattr(training_run, "assemble", lambda *_: changed)
        run = run_training(experiment, runs, cache, **options)
        for timer in timers:
            timer.join()
        return run

    return train


@pytest.fixture
def late_signals():
    """Lets a signal pass that comes when the run is over already."""
    former = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, former)


@pytest.fixture(scope="module")
def uninterrupted(lab, parts, cache):
    run = run_training(parts.experiment, lab / "uninterrupted", cache)
    assert starts(run) == [None]
    return run


# The first update, those of a checkpoint and of an evaluation, and the last but one: a chain of stops at all of them
# is the next test.
@pytest.mark.parametrize("stop", [1, 5, 6, STEPS - 1])
def test_a_run_stopped_after_any_update_goes_on_bit_for_bit(uninterrupted, train, tmp_path, parts, stop):
    stopped = train(tmp_path, stop)
    assert max(record["step"] for record in records(stopped)) == stop
    run = train(tmp_path)
    assert starts(run) == [None, stop]
    assert_identical(run, uninterrupted, parts)


def test_a_run_stopped_after_every_update_goes_on_bit_for_bit(uninterrupted, train, tmp_path, parts):
    for stop in range(1, STEPS + 1):
        run = train(tmp_path, stop)
    assert starts(run) == [None, *range(1, STEPS)]
    assert_identical(train(tmp_path), uninterrupted, parts)


def test_a_stop_at_the_last_update_leaves_a_complete_run(uninterrupted, train, tmp_path, parts):
    train(tmp_path, STEPS)
    run = train(tmp_path)
    assert starts(run) == [None]
    assert_identical(run, uninterrupted, parts)


MOMENTS = (3, pytest.param(10, marks=pytest.mark.full(reason="three moments are in every run")))


@pytest.mark.parametrize("least", MOMENTS)
def test_signals_at_random_moments_lose_nothing(uninterrupted, train, tmp_path, parts, late_signals, least):
    """They may fall into an update, an evaluation, a save or between them."""
    draw, stops, attempts = random.Random(0), 0, 0
    while stops < least:
        attempts += 1
        assert attempts < 50, "the runs are over before they are stopped"
        complete = False
        while not complete:
            run = train(tmp_path / str(attempts), moment=draw.uniform(0, 0.1))
            complete = max(saved_steps(run.checkpoints)) == STEPS
        stops += len(starts(run)) - 1
        assert_identical(run, uninterrupted, parts)


@pytest.mark.parametrize("lost", ["opt_state", "ema", "data"])
def test_the_comparison_sees_what_a_resumed_run_has_lost(uninterrupted, train, tmp_path, parts, monkeypatch, lost):
    def forgetful(self, abstract, step=None):
        restored = restore(self, abstract, step)
        if lost == "data":
            return dataclasses.replace(restored, data=parts.dataset.train_iterator().get_state())
        fresh = getattr(parts.initial_state(), lost)
        return dataclasses.replace(restored, state=restored.state.replace(**{lost: fresh}))

    train(tmp_path, 6)
    restore = Checkpoints.restore
    monkeypatch.setattr(Checkpoints, "restore", forgetful)
    run = train(tmp_path)
    with pytest.raises(AssertionError):
        assert_identical(run, uninterrupted, parts)


def test_a_record_cut_short_by_a_crash_costs_no_other_record(uninterrupted, train, tmp_path, parts):
    run = train(tmp_path, 5)
    with open(run.metrics_file, "a") as file:
        file.write('{"kind": "train", "ste')
    train(tmp_path)
    assert_identical(run, uninterrupted, parts)
    assert run.damage() == []


@pytest.mark.parametrize("lost", ["half of the last line", "the last two lines"])
def test_records_that_a_crash_took_before_the_checkpoint_are_written_again(uninterrupted, train, tmp_path, parts, lost):
    run = train(tmp_path, 6)  # an evaluation, too, comes after update 6
    lines = run.metrics_file.read_bytes().splitlines(keepends=True)
    kept = lines[:-2] if lost == "the last two lines" else [*lines[:-1], lines[-1][:30]]
    run.metrics_file.write_bytes(b"".join(kept))
    train(tmp_path)
    assert_identical(run, uninterrupted, parts)


def test_bad_lines_and_files_beside_the_checkpoints_stop_no_run(uninterrupted, train, tmp_path, parts, capsys):
    run = train(tmp_path, 6)
    run.card_file.write_text("[]")
    (run.checkpoints / "00016").mkdir()
    (run.checkpoints / "17").write_text("no folder")
    with open(run.metrics_file, "a") as file:
        file.write('[]\n{"kind": "train"}\n')
    train(tmp_path)
    assert_identical(run, uninterrupted, parts)
    said = " ".join(capsys.readouterr().err.split())
    assert "card.json is damaged" in said and said.count("metrics.jsonl, line") == 2
    assert starts(run) == [6] and (run.path / "card.damaged.json").read_text() == "[]"
    assert (run.checkpoints / "00016").is_dir()


@pytest.mark.parametrize("damage", ["missing", "truncated", "of another run"])
def test_a_run_without_its_small_files_is_the_run_of_its_checkpoints(
    uninterrupted, train, tmp_path, parts, damage, capsys
):
    run = train(tmp_path, 6)
    run.card_file.unlink()
    text = run.experiment_file.read_text()
    if damage == "missing":
        run.experiment_file.unlink()
    else:
        run.experiment_file.write_text(text[:200] if damage == "truncated" else text.replace("0.01", "0.5"))
    other = dataclasses.replace(
        parts.experiment, optimizer=dataclasses.replace(parts.experiment.optimizer, peak_lr=0.5)
    )
    with pytest.raises(ValueError, match=r"checkpoint 6 in .* another experiment[^$]*optimizer.peak_lr: 0.01 -> 0.5"):
        train(tmp_path, experiment=other)
    with monkeypatched_data(parts), pytest.raises(ValueError, match="restore the data"):
        train(tmp_path)
    train(tmp_path)
    assert_identical(run, uninterrupted, parts)
    assert run.experiment_file.read_text() == text and starts(run) == [6]
    said = " ".join(capsys.readouterr().err.split())
    assert "experiment.txt is" in said and "written again from checkpoint 6" in said and "card.json is missing" in said


@contextlib.contextmanager
def monkeypatched_data(parts):
    """The dataset has another digest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts.dataset, "manifest", lambda: {"digest": "another"})
        yield


def test_metrics_of_a_run_that_nothing_names_are_not_added_to(train, tmp_path):
    run = RunDirectory(tmp_path / "tiny")
    run.path.mkdir()
    run.metrics_file.write_text("")
    with pytest.raises(ValueError, match="holds a run but not its experiment.txt"):
        train(tmp_path)
    train(tmp_path, 2, fresh=True)
    assert saved_steps(run.checkpoints) == (2,)


def test_a_run_deleted_while_it_trains_is_made_again(uninterrupted, tmp_path, parts, cache, monkeypatch):
    def delete(state):
        if int(state.step) == 7:
            while saved_steps(tmp_path / "tiny" / "checkpoints") != (5,):
                time.sleep(0.01)
            shutil.rmtree(tmp_path / "tiny")

    monkeypatch.setattr(training_run, "assemble", lambda *_: before_each_update(parts, delete))
    run = run_training(parts.experiment, tmp_path, cache)
    assert_identical(run, uninterrupted, parts)
    assert run.experiment() == parts.experiment and starts(run) == [None] and run.tokenizer.is_dir()
    assert saved_steps(run.checkpoints)[-1] == STEPS and not run.lock_file.exists()


def test_a_second_process_is_refused_while_a_run_trains(tmp_path, parts, cache, monkeypatch):
    refused = []

    def begin_again(state):
        if not refused:
            with pytest.raises(RunHeld, match=f"is in use by process {os.getpid()} on") as caught:
                run_training(parts.experiment, tmp_path, cache)
            with pytest.raises(RunHeld):
                run_training(parts.experiment, tmp_path, cache, fresh=True)
            refused.append(caught.value)

    monkeypatch.setattr(training_run, "assemble", lambda *_: before_each_update(parts, begin_again))
    run = run_training(parts.experiment, tmp_path, cache)
    assert refused and saved_steps(run.checkpoints)[-1] == STEPS and len(starts(run)) == 1


def test_the_clock_of_a_run_goes_on(train, tmp_path):
    run = train(tmp_path, 6)
    before = [record["seconds"] for record in run.records() if record["kind"] == "train"]
    train(tmp_path)
    after = [record["seconds"] for record in run.records() if record["kind"] == "train"]
    assert after[: len(before)] == before and after == sorted(after)

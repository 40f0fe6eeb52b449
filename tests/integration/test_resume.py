"""Stopping and resuming inside one process, after every update there is; test_signals.py does it from outside."""

import dataclasses
import os
import random
import signal
import threading

import pytest

from llm_jax import training_run
from llm_jax.assemble import assemble
from llm_jax.checkpoints.manager import Checkpoints
from llm_jax.checkpoints.restore import saved_steps
from llm_jax.core.run_directory import RunDirectory
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


@pytest.fixture
def train(monkeypatch, parts, cache):
    """Starts or resumes the run in a folder; a signal comes while update `stop` is made, or `moment` seconds after the
    first."""

    def train(runs, stop=None, moment=None) -> RunDirectory:
        timers = []

        def step(state, batch):
            if int(state.step) + 1 == stop:
                signal.raise_signal(signal.SIGTERM)
            if moment is not None and not timers:
                timers.append(threading.Timer(moment, os.kill, (os.getpid(), signal.SIGTERM)))
                timers[0].start()
            return parts.programs.step(state, batch)

        programs = dataclasses.replace(parts.programs, step=step)
        monkeypatch.setattr(training_run, "assemble", lambda *_: dataclasses.replace(parts, programs=programs))
        run = run_training(parts.experiment, runs, cache)
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


@pytest.mark.parametrize("stop", range(1, STEPS))
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


def test_signals_at_ten_random_moments_lose_nothing(uninterrupted, train, tmp_path, parts, late_signals):
    """They may fall into an update, an evaluation, a save or between them. The ten kills of test_signals.py make twenty
    random stops in all."""
    draw, stops, attempts = random.Random(0), 0, 0
    while stops < 10:
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


def test_the_clock_of_a_run_goes_on(train, tmp_path):
    run = train(tmp_path, 6)
    before = [record["seconds"] for record in run.records() if record["kind"] == "train"]
    train(tmp_path)
    after = [record["seconds"] for record in run.records() if record["kind"] == "train"]
    assert after[: len(before)] == before and after == sorted(after)

"""Signals from outside, at moments that nothing inside the run can foresee."""

import json
import random
import signal
import time

import pytest

from llm_jax.assemble import assemble
from llm_jax.core.run_directory import RunDirectory
from llm_jax.experiment import load_experiment
from tests.helpers import tiny_run
from tests.helpers.command_line import start, wait
from tests.integration.outcome import assert_identical, records, starts

STOPS = 20
STEPS = 300
EVERY = 4
CHAIN_FILE = f'''
import dataclasses
from pathlib import Path
from llm_jax.checkpoints.manager import CheckpointConfig
from llm_jax.experiment import EvaluationConfig
from tests.helpers import tiny_run

def experiment():
    return tiny_run.experiment(
        Path(__file__).parent,
        steps={STEPS},
        checkpoint=CheckpointConfig(every={EVERY}),
        evaluation=EvaluationConfig(every=50, max_bytes=300),
    )
'''


@pytest.fixture(scope="module")
def chain(tmp_path_factory, cache):
    """A run stopped at twenty random moments, and what was seen at each."""
    folder = tmp_path_factory.mktemp("chain")
    tiny_run.write_corpus(folder)
    file = folder / "experiment.py"
    file.write_text(CHAIN_FILE)
    words = (file, folder, cache, 0, STOPS)
    outcome = wait(start(*words, module="tests.integration.stopped_again_and_again"), 400)
    assert outcome.code == 0, outcome.err[-3000:]
    stops = [json.loads(line) for line in outcome.out.splitlines() if line.startswith("{")]
    return RunDirectory(folder / "tiny"), RunDirectory(folder / "uninterrupted" / "tiny"), stops


@pytest.mark.slow
def test_a_run_stopped_at_twenty_random_moments_ends_like_one_left_alone(chain, cache):
    run, uninterrupted, stops = chain
    assert starts(uninterrupted) == [None]
    assert len(starts(run)) == len(stops) + 1 == STOPS + 1
    assert len(set(starts(run))) > STOPS / 2, "the stops did not fall on different steps"
    assert_identical(run, uninterrupted, assemble(run.experiment(), cache))


@pytest.mark.slow
def test_a_signal_that_can_be_answered_loses_nothing(chain):
    run, _, stops = chain
    answered = [(stop, resumed) for stop, resumed in zip(stops, starts(run)[1:], strict=True) if stop["code"] == 0]
    assert {stop["signal"] for stop, _ in answered} == {"SIGTERM", "SIGINT"}
    for stop, resumed in answered:
        assert stop["recorded"] == stop["saved"] == resumed


@pytest.mark.slow
def test_a_kill_loses_at_most_the_steps_since_the_last_save(chain):
    run, _, stops = chain
    killed = [(stop, resumed) for stop, resumed in zip(stops, starts(run)[1:], strict=True) if stop["code"] != 0]
    assert {(stop["signal"], stop["code"]) for stop, _ in killed} == {("SIGKILL", -signal.SIGKILL)}
    assert any(stop["recorded"] > resumed for stop, resumed in killed if resumed), "no kill cost a step"
    for stop, resumed in killed:
        assert stop["saved"] == resumed
        # The newest save was begun at the latest multiple of EVERY; it may not have been complete.
        assert stop["recorded"] - (resumed or 0) <= 2 * EVERY


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_saves_says_so_and_exits_cleanly(tmp_path, cache, number):
    file = tiny_run.write_experiment(tmp_path / "lab")
    run = RunDirectory(tmp_path / "tiny")
    words = ("train", file, "--runs-dir", tmp_path, "--cache-dir", cache, "--steps", 5000, "--checkpoint.every", 5000)
    process = start(*words)
    target = random.Random(number).randint(1, 30)
    while process.poll() is None and not any(record["step"] >= target for record in run.records()):
        time.sleep(0.01)
    process.send_signal(number)
    outcome = wait(process)
    assert outcome.code == 0, outcome.err
    assert f"stopped by {number.name} and saved; the same command resumes" in outcome.said
    assert "Traceback" not in outcome.err and "complete" not in outcome.out
    last = max(record["step"] for record in records(run))
    assert target <= last < 5000
    assert [path.name for path in run.checkpoints.iterdir()] == [str(last)]
    assert load_experiment(file, ["--steps", "5000", "--checkpoint.every", "5000"]) == run.experiment()

"""Signals from outside, at moments that nothing inside the run can foresee."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from llm_jax.assemble import assemble
from llm_jax.core.run_directory import RunDirectory
from llm_jax.experiment import load_experiment
from tests.helpers import tiny_run
from tests.helpers.command_line import ENVIRONMENT, ROOT, start, wait
from tests.integration.outcome import assert_identical, records, starts

KILLS = (3, pytest.param(5, marks=pytest.mark.full(reason="three kills are made in every run")))
STEPS_PER_KILL = 20
EVERY = 4
CHAIN_FILE = """
from pathlib import Path
from llm_jax.checkpoints.checkpoint_config import CheckpointConfig
from llm_jax.evals import PerplexityConfig
from tests.helpers import tiny_run

def experiment():
    return tiny_run.experiment(
        Path(__file__).parent,
        steps=STEPS,
        checkpoint=CheckpointConfig(every=EVERY),
        evaluations=(PerplexityConfig(every=STEPS, max_bytes=300),),
    )
"""


@pytest.fixture(scope="module", params=KILLS)
def chain(request, tmp_path_factory, cache):
    """A run killed at random moments, the same left alone, and what was seen at each kill."""
    folder = tmp_path_factory.mktemp("chain")
    tiny_run.write_corpus(folder)
    file = folder / "experiment.py"
    constants = f"STEPS = {request.param * STEPS_PER_KILL}\nEVERY = {EVERY}\n"
    file.write_text(constants + CHAIN_FILE)
    words = (file, folder, cache, 0, request.param)
    outcome = wait(start(*words, module="tests.integration.killed_again_and_again"), 400)
    assert outcome.code == 0, outcome.err[-3000:]
    kills = [json.loads(line) for line in outcome.out.splitlines() if line.startswith("{")]
    return RunDirectory(folder / "tiny"), RunDirectory(folder / "uninterrupted" / "tiny"), kills


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_like_one_left_alone(chain, cache):
    run, uninterrupted, kills = chain
    assert starts(uninterrupted) == [None]
    assert {kill["code"] for kill in kills} == {-signal.SIGKILL}
    assert len(starts(run)) == len(kills) + 1
    assert len(set(starts(run))) > len(kills) / 2, "the kills did not fall on different steps"
    assert_identical(run, uninterrupted, assemble(run.experiment(), cache))


@pytest.mark.slow
def test_a_kill_loses_at_most_the_steps_since_the_last_save(chain):
    run, _, kills = chain
    resumed = starts(run)[1:]
    assert resumed == [kill["saved"] for kill in kills]
    lost = [kill["made"] - (step or 0) for kill, step in zip(kills, resumed, strict=True)]
    # A save begins at a multiple of EVERY and goes on in the background; the next one waits for it.
    assert 0 < max(lost) <= 2 * EVERY


def _check_log(log: str, found: list[dict]) -> None:
    """A log that is no terminal says what is trained before it is, and what it shows of speed is not the compiler's."""
    lines = log.splitlines()
    header = lines.index("compiling the update")
    assert {line.split()[0] for line in lines[:header]} >= {"tiny", "training", "data", "devices", "log"}
    assert "11,760 parameters" in log and "5,000 steps of 64 tokens, 320,000 in all" in log
    compiling = float(lines[header + 1].removeprefix("compiled after ").removesuffix(" s"))
    assert lines[header + 2].startswith("step 1/5000 ") and lines[header + 2].endswith(" left")
    first = next(record for record in found if record["kind"] == "train")
    assert first["step"] == 1 and first["seconds"] < compiling / 2


SIGNALS = [
    signal.SIGINT,
    pytest.param(signal.SIGTERM, marks=pytest.mark.full(reason="test_hosts.py stops a run of several hosts by it")),
]


@pytest.mark.parametrize("number", SIGNALS)
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
    _check_log(outcome.err, list(run.records()))
    last = max(record["step"] for record in records(run))
    assert target <= last < 5000
    assert [path.name for path in run.checkpoints.iterdir()] == [str(last)]
    assert load_experiment(file, ["--steps", "5000", "--checkpoint.every", "5000"]) == run.experiment()


WAITING = """
import ctypes
from llm_jax.train import hooks

libc = ctypes.CDLL(None)
with hooks.StopOnSignal(kept=lambda: "checkpoint 5 is kept"):
    mutex, condition = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    print("waiting", flush=True)
    while True:
        libc.pthread_cond_wait(condition, mutex)
"""


def test_a_second_interrupt_ends_at_once_while_the_process_waits_for_a_device():
    # As for a long update or compilation: in a call that no signal ends, between whose begin and end no handler of
    # Python's is called.
    environment = {**os.environ, **ENVIRONMENT}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", WAITING], cwd=ROOT, env=environment, **pipes)
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    assert "SIGINT: the run stops after the update under way and saves" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    outcome = wait(process, 30)
    assert outcome.code == 128 + signal.SIGINT and "interrupted: checkpoint 5 is kept" in outcome.err

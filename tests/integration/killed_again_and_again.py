"""Run by test_signals.py: trains one experiment in a chain of processes, each of which is killed at a random moment.

Usage: killed_again_and_again.py FILE RUNS CACHE SEED KILLS. Kills the run KILLS times and lets it complete; then trains
it without a kill in RUNS/uninterrupted. Prints one JSON object per kill. Processes are forked before jax starts its
threads, to spare them the imports.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from llm_jax import cli
from llm_jax.checkpoints.restore import saved_steps
from llm_jax.core import garbage
from llm_jax.core.run_directory import RunDirectory

PATIENCE = 100
MOST_UPDATES = 16


def start(file: Path, runs: Path, cache: Path) -> int:
    """Forks a process that trains, and returns its id."""
    pid = os.fork()
    if pid == 0:
        cli.main(["train", str(file), "--runs-dir", str(runs), "--cache-dir", str(cache)])
        os._exit(0)
    return pid


def updates(run: RunDirectory, offset: int) -> list[int]:
    """Steps of the training records from a place in metrics.jsonl on; the last one may still lack its end."""
    if not run.metrics_file.exists():
        return []
    lines = run.metrics_file.read_bytes()[offset:].splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return [record["step"] for record in records if record["kind"] == "train"]


def kill(pid: int, run: RunDirectory, draw: random.Random) -> dict:
    """Waits for a random number of updates made by `pid`, and a little longer; then kills it."""
    offset = run.metrics_file.stat().st_size if run.metrics_file.exists() else 0
    target, deadline = draw.randint(1, MOST_UPDATES), time.monotonic() + PATIENCE
    while len(updates(run, offset)) < target:
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            raise SystemExit("the run ended before it was killed: give it more steps")
        if time.monotonic() > deadline:
            raise SystemExit(f"{target} updates took more than {PATIENCE} seconds")
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.01))
    os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {
        "code": code,
        "made": max(updates(run, offset)),
        "saved": max(saved_steps(run.checkpoints), default=None),
    }


def main(file: Path, runs: Path, cache: Path, seed: int, kills: int) -> None:
    """The whole chain."""
    draw, run = random.Random(seed), RunDirectory(runs / "tiny")
    for _ in range(kills):
        print(json.dumps(kill(start(file, runs, cache), run, draw)), flush=True)
    for folder in (runs, runs / "uninterrupted"):
        if os.waitpid(start(file, folder, cache), 0)[1] != 0:
            raise SystemExit("a run that was left alone failed")


if __name__ == "__main__":
    garbage.postpone()
    main(*map(Path, sys.argv[1:4]), *map(int, sys.argv[4:]))

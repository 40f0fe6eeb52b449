"""Run by test_signals.py: trains one experiment in a chain of processes, each of which is stopped at a random moment.

Usage: stopped_again_and_again.py FILE RUNS CACHE SEED STOPS. Stops the run STOPS times, half of them by SIGKILL, and
lets it complete; then trains it without a stop in RUNS/uninterrupted. Prints one JSON object per stop. Processes are
forked before jax starts its threads, to spare them the imports.
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
from llm_jax.core.run_directory import RunDirectory

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PATIENCE = 60


def start(file: Path, runs: Path, cache: Path) -> int:
    """Forks a process that trains, and returns its id."""
    pid = os.fork()
    if pid == 0:
        cli.main(["train", str(file), "--runs-dir", str(runs), "--cache-dir", str(cache)])
        sys.stdout.flush()
        os._exit(0)
    return pid


def stop(pid: int, run: RunDirectory, number: signal.Signals, draw: random.Random) -> dict:
    """Waits for a record of an update made by `pid`, and a little longer; then sends the signal."""
    known, target = run.metrics_file.stat().st_size if run.metrics_file.exists() else 0, draw.randint(1, 1500)
    deadline = time.monotonic() + PATIENCE
    while not run.metrics_file.exists() or run.metrics_file.stat().st_size < known + target:
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            raise SystemExit("the run ended before it was stopped: give it more steps")
        if time.monotonic() > deadline:
            raise SystemExit(f"no update in {PATIENCE} seconds")
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.02))
    os.kill(pid, number)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    recorded = max(record["step"] for record in run.records())
    saved = max(saved_steps(run.checkpoints), default=None)
    return {"signal": number.name, "code": code, "recorded": recorded, "saved": saved}


def main(file: Path, runs: Path, cache: Path, seed: int, stops: int) -> None:
    """The whole chain."""
    draw, run = random.Random(seed), RunDirectory(runs / "tiny")
    for _ in range(stops):
        print(json.dumps(stop(start(file, runs, cache), run, draw.choice(SIGNALS), draw)), flush=True)
    for folder in (runs, runs / "uninterrupted"):
        if os.waitpid(start(file, folder, cache), 0)[1] != 0:
            raise SystemExit("a run that was left alone failed")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), *map(int, sys.argv[4:]))

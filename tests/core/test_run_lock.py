"""One process has a run directory; another takes it only once the first has ended."""

import dataclasses
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from llm_jax.core import run_lock
from llm_jax.core.run_lock import Holder, RunHeld, RunLock

HOLD = """
import sys, time
from pathlib import Path
from llm_jax.core.run_lock import RunLock
RunLock(Path(sys.argv[1])).take(print)
print("taken", flush=True)
time.sleep(100)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock.json"


@pytest.fixture
def other(path):
    """Another process that has the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "taken\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(run_lock, "STALE_SECONDS", 1.5)
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(run_lock, "_LOOK_SECONDS", 0.05)


def _no_flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")


def _write(path, age=0.0, **changes):
    """The lock of a process on another machine, last touched `age` seconds ago."""
    elsewhere = {"host": "node7", "kernel": "another boot", "pid": 1, "job": "77"}
    path.write_text(json.dumps(dataclasses.asdict(Holder.this_process()) | elsewhere | changes))
    os.utime(path, (time.time() - age,) * 2)


def _taken(path, said=print):
    lock = RunLock(path)
    lock.take(said)
    lock.check()
    assert Holder.parsed(path.read_text()).pid == os.getpid()
    lock.release()
    assert not path.exists() and list(path.parent.iterdir()) == []


@pytest.mark.parametrize("flock", [fcntl.flock, _no_flock], ids=["flock", "no flock"])
def test_a_live_holder_is_named_and_a_killed_one_makes_way_at_once(path, other, monkeypatch, flock):
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(RunHeld, match=rf"{path.parent} is in use by process {other.pid} on .*, since 2.*--name"):
        RunLock(path).take(print)
    other.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20  # a process that is not waited for is a zombie, and has ended all the same
    while Holder.parsed(path.read_text()).has_ended() is False:
        assert time.monotonic() < deadline
    _taken(path)


def test_two_locks_of_one_process_exclude_each_other(path):
    first = RunLock(path)
    first.take(print)
    with pytest.raises(RunHeld, match=f"process {os.getpid()} on"):
        RunLock(path).take(print)
    first.release()
    _taken(path)


def test_a_pid_that_another_process_has_now_is_no_holder(path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", _no_flock)
    _write(path, kernel=Holder.this_process().kernel, pid=os.getpid(), began="5")
    _taken(path)


@pytest.mark.parametrize("flock", [fcntl.flock, _no_flock], ids=["flock", "no flock"])
def test_a_silent_holder_elsewhere_makes_way_after_a_while_and_one_that_touches_the_file_never(
    path, quick, monkeypatch, flock
):
    monkeypatch.setattr(fcntl, "flock", flock)
    said, begun = [], time.monotonic()
    _write(path)
    _taken(path, said.append)
    assert time.monotonic() - begun > 1 and len(said) == 1 and "process 1 on node7, SLURM job 77" in said[0]
    _write(path, age=5)
    _taken(path, said.append)
    assert len(said) == 1, "an old lock is not waited for"
    _write(path)
    touch = lambda _: os.utime(path)  # noqa: E731
    with pytest.raises(RunHeld, match="process 1 on node7"):
        RunLock(path).take(touch)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "\0\0"])
def test_a_damaged_lock_makes_way_once_nobody_touches_it(path, quick, content):
    path.write_text(content)
    _taken(path)


def test_a_requeued_job_waits_for_its_predecessor_and_no_other(path, quick, monkeypatch):
    first, said = RunLock(path), []
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    first.take(print)
    with pytest.raises(RunHeld, match="SLURM job 77"):
        RunLock(path).take(said.append)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")

    def end_it(line):
        said.append(line)
        first.release()

    _taken(path, end_it)
    assert len(said) == 1 and "SLURM job 77" in said[0] and "waiting" in said[0]
    first.take(print)
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    with pytest.raises(RunHeld, match="SLURM job 77"):
        RunLock(path).take(print)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setattr(run_lock, "PATIENCE_SECONDS", 0.2)
    with pytest.raises(RunHeld, match="SLURM job 77"):
        RunLock(path).take(print)
    first.release()


def test_the_holder_touches_the_file_and_notices_its_loss(path, quick):
    lock = RunLock(path)
    lock.take(print)
    os.utime(path, (0, 0))
    deadline = time.monotonic() + 20
    while os.stat(path).st_mtime < 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    path.unlink()
    lock.check()
    assert Holder.parsed(path.read_text()).pid == os.getpid(), "a deleted file is made again"
    path.unlink()
    _write(path)
    with pytest.raises(RunHeld, match="this process lost .* to process 1 on node7"):
        lock.check()
    lock.release()
    assert Holder.parsed(path.read_text()).host == "node7", "the lock of another stays"


def test_of_processes_that_start_at_once_one_gets_the_lock(path):
    starting = [
        subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    ended = lambda: [process for process in starting if process.poll() is not None]  # noqa: E731
    deadline = time.monotonic() + 60
    while len(ended()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (holder,) = set(starting) - set(ended())
    assert Holder.parsed(path.read_text()).pid == holder.pid
    for process in starting:
        process.kill()
        process.communicate()


def test_a_file_system_without_hard_links_has_locks_as_well(path, monkeypatch):
    def no_link(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    lock = RunLock(path)
    lock.take(print)
    with pytest.raises(RunHeld):
        RunLock(path).take(print)
    lock.release()
    _taken(path)

"""A tracker cannot stop a run, nor delay it."""

import threading
import time

import pytest

from llm_jax.core.configclass import configclass
from llm_jax.core.run_directory import RunDirectory
from llm_jax.trackers import FigureWriter, TrackedRun, Tracker
from llm_jax.trackers.tracking import Tracking

RECORDS = 5000
"""More than wait in any queue."""


class Writer(FigureWriter):
    """Calls `FAULTS[...]` where there is one."""

    def write(self, kind, step, figures):
        CALLS.append((kind, step, threading.current_thread()))
        FAULTS.get("write", int)()

    def close(self):
        CALLS.append(("closed", None, threading.current_thread()))
        FAULTS.get("close", int)()


@configclass
class FaultyConfig(Tracker):
    """Fails where the test says."""

    def open(self, run):
        FAULTS.get("open", int)()
        return Writer()

    def place(self, run):
        return "nowhere"


CALLS: list = []
FAULTS: dict = {}


@pytest.fixture
def said():
    CALLS.clear()
    FAULTS.clear()
    yield []
    FAULTS.clear()


@pytest.fixture
def tracking(tmp_path, said):
    return Tracking(FaultyConfig(), TrackedRun(RunDirectory(tmp_path), "", False), said.append)


def fail(error):
    raise error


@pytest.mark.parametrize("error", [RuntimeError("no more"), SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["open", "write", "close"])
def test_what_a_tracker_raises_is_told_once(tracking, said, place, error):
    FAULTS[place] = lambda: fail(error)
    for step in range(3):
        tracking.write("train", step, {"loss": 1.0})
    tracking.close()
    (message,) = said
    assert message.startswith("tracker Faulty is given no figures any more") and type(error).__name__ in message
    kinds = [kind for kind, _, _ in CALLS]
    assert kinds == {"open": [], "write": ["train", "closed"], "close": ["train"] * 3 + ["closed"]}[place]


def test_a_tracker_that_hangs_delays_nobody(tracking, said, monkeypatch):
    monkeypatch.setattr(FaultyConfig, "patience", 0.2)
    released = threading.Event()
    FAULTS["write"] = released.wait
    begun = time.monotonic()
    for step in range(RECORDS):
        tracking.write("train", step, {"loss": 1.0})
    tracking.close()
    assert time.monotonic() - begun < 5
    assert len(said) == 1 and "taken nothing for long" in said[0]
    released.set()


def test_a_tracker_that_does_not_end_is_left_after_its_patience(tracking, said, monkeypatch):
    monkeypatch.setattr(FaultyConfig, "patience", 0.2)
    released = threading.Event()
    FAULTS["close"] = released.wait
    tracking.write("train", 1, {"loss": 1.0})
    while not CALLS:
        time.sleep(0.001)
    begun = time.monotonic()
    tracking.close()
    assert FaultyConfig.patience <= time.monotonic() - begun < 5
    assert len(said) == 1 and "0.2 s after the end" in said[0]
    released.set()


def test_all_figures_come_in_order_from_one_thread_that_is_not_the_caller_s(tracking, said):
    for step in range(100):
        tracking.write("train", step, {"loss": 1.0})
    tracking.close()
    assert [(kind, step) for kind, step, _ in CALLS] == [("train", step) for step in range(100)] + [("closed", None)]
    (thread,) = {thread for _, _, thread in CALLS}
    assert thread is not threading.current_thread() and said == []

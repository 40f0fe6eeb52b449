"""The display cannot stop a run, nor delay it."""

import contextlib
import io
import os
import time

import pytest
from rich.console import Console

from llm_jax.train.display import Display, LogConsole

RECORDS = 5000
"""More than wait in any queue."""


FIGURES = {"loss": 1.0, "learning_rate": 0.1, "tokens_per_second": 10.0}


def _show_much(console: Console) -> float:
    """Shows more than a pipe or a queue holds; the seconds it took before the end."""
    begun = time.monotonic()
    display = Display(0, RECORDS, 1, console)
    display._aside.do(display._bar.start)
    for step in range(1, RECORDS + 1):
        display.update(step, FIGURES)
    taken = time.monotonic() - begun
    display._aside.do(display._bar.stop)
    display._aside.close(0.5)
    return taken


@pytest.mark.parametrize("terminal", [False, True])
def test_a_pipe_that_nobody_reads_delays_no_step(terminal):
    reader, writer = os.pipe()
    with open(writer, "w") as file:
        assert _show_much(Console(file=file, force_terminal=terminal, width=200)) < 5
        os.set_blocking(reader, False)
        with contextlib.suppress(BlockingIOError):  # what blocks is let go
            while os.read(reader, 2**16):
                time.sleep(0.01)
        os.close(reader)
        with contextlib.suppress(BrokenPipeError):
            file.flush()
            file.close()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_log_on_a_full_disk_or_left_by_its_reader_ends_nothing(terminal):
    with open("/dev/full", "w") as full:
        _show_much(Console(file=full, force_terminal=terminal, width=200))
        with contextlib.suppress(OSError):
            full.close()
    reader, writer = os.pipe()
    os.close(reader)
    console = LogConsole()
    with open(writer, "w") as left:
        console.file = left
        _show_much(console)
        assert console.quiet
        with contextlib.suppress(OSError):
            left.close()
    os.fstat(1)  # rich's own answer to a broken pipe would have put stdout elsewhere and ended the process


def test_lines_elsewhere_than_on_a_terminal_tell_the_time_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    display = Display(2, 12, 5, Console(file=io.StringIO(), width=20))
    now[0] = 500.0
    display.begin()  # compiling is over
    for step in range(3, 13):
        now[0] += 70.0 if step == 8 else 10.0
        display.update(step, FIGURES)
    monkeypatch.undo()
    display._aside.close()
    lines = display._console.file.getvalue().splitlines()
    shown = {int(line.split()[1].split("/")[0]): line.split()[-2:] for line in lines}
    # Step 3 is the first, 5 and 10 are due, 8 comes after long, 12 is the last.
    assert {step: left for step, (left, _) in shown.items()} == {
        3: "0:01:30", 5: "0:01:10", 8: "0:01:20", 10: "0:00:35", 12: "0:00:00",
    }  # fmt: skip
    assert all(word == "left" for _, word in shown.values())

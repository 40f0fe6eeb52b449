"""What a run can do without cannot stop it: event files, samples, the display."""

import contextlib
import errno
import io
import os
import threading
import time

import pytest
from rich.console import Console

from llm_jax.core.run_directory import RunDirectory
from llm_jax.train import event_files, hooks
from llm_jax.train.display import Display, LogConsole
from llm_jax.train.event_files import EventFiles

RECORDS = 5000
"""More than wait in any queue."""


class FullDisk(io.RawIOBase):
    """A file on a disk without room, once `room` bytes are written."""

    def __init__(self, room: int):
        self._room = room

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2**30  # of no file: nothing is synchronised

    def write(self, content) -> int:
        self._room -= len(content)
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(content)


@pytest.mark.parametrize("room", [0, 10_000])
def test_a_full_disk_ends_the_event_files_and_not_the_run(tmp_path, monkeypatch, room):
    monkeypatch.setattr("tensorboardX.record_writer.open_file", lambda path: io.BufferedWriter(FullDisk(room)))
    monkeypatch.setattr(os, "fsync", lambda file: None)
    run, said = RunDirectory(tmp_path), []
    recorder = hooks.Recorder(run, said.append)
    begun = time.monotonic()
    for step in range(RECORDS):
        recorder.write("train", step, loss=1.0)
    recorder.close()
    assert time.monotonic() - begun < 10
    assert len(list(run.records())) == RECORDS
    assert len(said) == 1 and "No space left on device" in said[0] and "event files are not written any more" in said[0]


def test_a_folder_that_cannot_be_made_ends_them_too(tmp_path):
    (tmp_path / "tensorboard").write_text("a file")
    said = []
    files = EventFiles(tmp_path / "tensorboard", said.append)
    for step in range(3):
        files.add(step, {"loss": 1.0})
    files.close()
    assert len(said) == 1 and "File exists" in said[0]


def test_a_disk_that_hangs_delays_nobody(tmp_path, monkeypatch):
    released, said = threading.Event(), []

    class Hanging:
        def __init__(self, prefix):
            released.wait()

    monkeypatch.setattr(event_files, "EventsWriter", Hanging)
    files = EventFiles(tmp_path, said.append)
    begun = time.monotonic()
    for step in range(RECORDS):
        files.add(step, {"loss": 1.0})
    assert time.monotonic() - begun < 5
    assert len(said) == 1 and "nothing was written" in said[0]
    released.set()


def test_samples_that_cannot_be_written_cost_a_message():
    def write(step: int, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    said = []
    hooks.Sample(lambda weights: "text", lambda state: state, 5, 10, write, said.append).on_step(5, None)
    assert said == ["the samples of step 5 cannot be written ([Errno 28] No space left on device); the run continues"]


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

"""Event files hold the figures of a run, and what keeps them from being written does not stop it."""

import errno
import io
import math
import os
import struct
import time

import pytest
from tensorboardX.proto.event_pb2 import Event

from llm_jax.core.paths import at
from llm_jax.core.run_directory import RunDirectory
from llm_jax.trackers import TensorBoardConfig
from llm_jax.train import hooks
from tests.helpers import object_store

RECORDS = 5000
"""More than wait in any queue."""


def scalars(run):
    """(name, step, value) of every scalar in the event files of a run, in the order of writing.

    A file of records: length (uint64), its checksum (uint32), the record, its checksum.
    """
    found = []
    for path in sorted(run.tensorboard.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            content = content[16 + length :]
    return found


@pytest.mark.parametrize("place", ["a folder", "gs://bucket/run"])
def test_the_figures_are_in_the_event_files(tmp_path, monkeypatch, place):
    object_store.install(tmp_path / "store", monkeypatch)
    run, said = RunDirectory(at(place) if "://" in place else tmp_path / place), []
    run.path.mkdir(exist_ok=True)
    recorder = hooks.Recorder(run, (TensorBoardConfig(),), say=said.append)
    recorder.write("train", 3, loss=1.5, learning_rate=0.25, note="a word", tokens=96)
    recorder.write("eval/validation", 3, loss=math.inf)
    recorder.write("event", 3, text="saved")
    recorder.close()
    assert scalars(run) == [
        ("train/loss", 3, 1.5),
        ("train/learning_rate", 3, 0.25),
        ("train/tokens", 3, 96.0),
        ("eval/validation/loss", 3, math.inf),
    ]
    assert said == []


def test_without_figures_there_is_no_folder(tmp_path):
    run = RunDirectory(tmp_path)
    hooks.Recorder(run, (TensorBoardConfig(),)).close()
    assert not run.tensorboard.exists()


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
    recorder = hooks.Recorder(run, (TensorBoardConfig(),), say=said.append)
    begun = time.monotonic()
    for step in range(RECORDS):
        recorder.write("train", step, loss=1.0)
    recorder.close()
    assert time.monotonic() - begun < 10
    assert len(list(run.records())) == RECORDS
    assert len(said) == 1 and "No space left on device" in said[0] and "TensorBoard is given no figures" in said[0]


def test_a_folder_that_cannot_be_made_ends_them_too(tmp_path):
    (tmp_path / "tensorboard").write_text("a file")
    said = []
    recorder = hooks.Recorder(RunDirectory(tmp_path), (TensorBoardConfig(),), say=said.append)
    for step in range(3):
        recorder.write("train", step, loss=1.0)
    recorder.close()
    assert len(said) == 1 and "File exists" in said[0]

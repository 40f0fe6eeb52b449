"""Trackers of whole runs: a user's own, one that fails, and one whose package is not installed."""

import json
import sys

from tests.helpers.command_line import llm_jax

FILE = '''"""The tiny experiment with trackers of a user's own."""

import dataclasses
import json
from pathlib import Path

from llm_jax.core.configclass import configclass
from llm_jax.trackers import FigureWriter, Tracker
from tests.helpers import tiny_run


@configclass
class LinesConfig(Tracker):
    """Writes a line for each record into a file of the run directory."""

    file: str = "lines.txt"

    def open(self, run):
        return Lines(run, run.directory.path / self.file)

    def place(self, run):
        return f"lines in {run.path / self.file}"


class Lines(FigureWriter):
    def __init__(self, run, path):
        self._file = open(path, "a")
        self._write("open", run.name, run.resumed, len(run.experiment.splitlines()))

    def write(self, kind, step, figures):
        self._write(kind, step, dict(figures))

    def close(self):
        self._write("close")
        self._file.close()

    def _write(self, *values):
        self._file.write(json.dumps(values) + "\\n")


@configclass
class BrokenConfig(Tracker):
    """Raises."""

    def open(self, run):
        raise RuntimeError("out of order")

    def place(self, run):
        return "nowhere"


def experiment():
    return dataclasses.replace(
        tiny_run.experiment(Path(__file__).parent), steps=4, log_every=2, trackers=(BrokenConfig(), LinesConfig())
    )
'''


def test_a_run_is_told_to_trackers_of_a_user_s_own_and_outlives_a_broken_one(file, train, run):
    file.write_text(FILE)
    outcome = train()
    assert outcome.code == 0
    assert outcome.said.count("tracker Broken is given no figures any more (RuntimeError: out of order)") == 1
    assert f"lines in {run.path / 'lines.txt'}" in outcome.said and not run.tensorboard.exists()
    lines = [json.loads(line) for line in (run.path / "lines.txt").read_text().splitlines()]
    opened, *written, closed = lines
    fields = len(run.experiment_file.read_text().splitlines())
    assert (opened, closed) == (["open", "tiny", False, fields], ["close"])
    recorded = [
        [record["kind"], record["step"], {k: v for k, v in record.items() if k not in ("kind", "step", "time")}]
        for record in run.records()
    ]
    assert sorted(written, key=str) == sorted(recorded, key=str) and len(written) >= 3
    # With a tracker of the package in the place of the broken one.
    outcome = train("--trackers.0", "tensorboard", "--trackers.1.file", "others.txt", "--fresh")
    assert outcome.code == 0 and "others.txt" in outcome.said and "tensorboard --logdir" in outcome.said


def test_a_tracker_whose_package_is_absent_is_refused_before_the_run_begins(train, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    outcome = train("--trackers.0", "wandb")
    assert outcome.code == 1 and "pip install 'llm-jax[wandb]'" in outcome.said
    assert not run.path.exists()


def test_the_command_line_chooses_a_tracker(file):
    outcome = llm_jax("show", file, "--trackers.0", "wandb", "--trackers.0.project", "foxes")
    assert outcome.code == 0, outcome.said
    assert 'trackers.0.project = "foxes"' in outcome.out and "WandbConfig" in outcome.out

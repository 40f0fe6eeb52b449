"""The calls that wandb is given, on a stand-in for it: the figures of a run, and the same run after a resumption."""

import json
import sys
import types

import pytest

from llm_jax.core.run_directory import RunDirectory
from llm_jax.trackers import WandbConfig
from llm_jax.train import hooks

EXPERIMENT = """= llm_jax.experiment.Experiment
name = "tiny"
steps = 12
optimizer.peak_lr = 0.01
optimizer.schedule = my_file.Triangle
"""


class FakeRun:
    """What `wandb.init` returns."""

    def __init__(self, calls):
        self._calls = calls

    def log(self, data, step=None):
        json.dumps(data)  # plain numbers, which no device has to be asked for
        self._calls.append(("log", step, data))

    def finish(self):
        self._calls.append(("finish",))


@pytest.fixture
def calls(monkeypatch):
    """Makes a `wandb` that can be imported; the calls that it gets."""
    calls = []

    def init(**arguments):
        calls.append(("init", arguments))
        return FakeRun(calls)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Settings=dict))
    return calls


def start(run, figures, said, config=None):
    """One start of a run, which records `figures` by step."""
    recorder = hooks.Recorder(run, (config or WandbConfig(project="foxes", entity="lab"),), EXPERIMENT, said.append)
    for step, loss in figures.items():
        recorder.write("train", step, loss=loss)
    recorder.close()


def test_a_run_is_opened_logged_with_its_steps_and_finished(tmp_path, calls):
    run, said = RunDirectory(tmp_path / "tiny"), []
    run.path.mkdir()
    start(run, {5: 2.0, 10: 1.5}, said)
    (name, given), *rest = calls
    assert name == "init" and said == []
    assert (given["project"], given["entity"], given["name"]) == ("foxes", "lab", "tiny")
    assert given["config"] == {
        "experiment": "llm_jax.experiment.Experiment",
        "name": "tiny",
        "steps": 12,
        "optimizer.peak_lr": 0.01,
        "optimizer.schedule": "my_file.Triangle",
    }
    assert given["settings"] == {"console": "off"} and given["dir"] == str(run.path)
    assert rest == [("log", 5, {"train/loss": 2.0}), ("log", 10, {"train/loss": 1.5}), ("finish",)]


def test_a_resumed_run_continues_the_same_one_and_another_run_has_its_own(tmp_path, calls):
    runs = [RunDirectory(tmp_path / name) for name in ("one", "two")]
    for run in runs:
        run.path.mkdir()
    for run in (runs[0], runs[0], runs[1]):
        start(run, {1: 1.0}, [])
    first, again, other = (call[1] for call in calls if call[0] == "init")
    assert first["id"] == again["id"] != other["id"]
    assert again["resume"] == "allow" and again["allow_val_change"] is True


def test_a_start_that_records_nothing_opens_nothing(tmp_path, calls):
    start(RunDirectory(tmp_path), {}, [])
    assert calls == []


def test_a_server_that_does_not_answer_is_told_once(tmp_path, monkeypatch, calls):
    def fail(**_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(sys.modules["wandb"], "init", fail)
    run, said = RunDirectory(tmp_path), []
    start(run, {1: 1.0, 2: 1.0, 3: 1.0}, said)
    assert len(said) == 1 and "tracker Wandb" in said[0] and "no route to host" in said[0]
    assert len(list(run.records())) == 3


def test_without_the_package_the_run_does_not_start(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install 'llm-jax\[wandb\]'"):
        WandbConfig().require()


def test_a_project_has_a_name():
    with pytest.raises(ValueError, match="project is ''"):
        WandbConfig(project="")


@pytest.mark.parametrize("content", ["", "0123", "not an id of wandb\n"])
def test_a_damaged_id_disables_the_tracker_with_the_file_and_the_remedy(tmp_path, calls, content):
    run, said = RunDirectory(tmp_path), []
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "id.txt").write_text(content)
    start(run, {1: 1.0}, said)
    assert calls == [] and len(said) == 1 and "id.txt holds" in said[0] and "or delete it" in said[0]
    assert len(list(run.records())) == 1

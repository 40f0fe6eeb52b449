"""A run directory belongs to one experiment, survives crashes, and gives every record once."""

import dataclasses
import json
import os

import pytest

from llm_jax.core import config, run_directory
from llm_jax.core.run_directory import FollowedRun, RunDirectory
from llm_jax.models.families.llama import llama

EXPERIMENT = llama(2, 4, 16, 24)


def _record(kind, step, **values):
    return json.dumps({"kind": kind, "step": step, "time": 0.0} | values)


def test_opening_twice_with_the_same_experiment_changes_nothing(tmp_path):
    run = RunDirectory(tmp_path / "deep" / "run")
    run.open(EXPERIMENT)
    written = (run.path / "experiment.txt").read_text()
    run.open(EXPERIMENT)
    assert (run.path / "experiment.txt").read_text() == written == config.to_text(EXPERIMENT)
    assert run.experiment() == EXPERIMENT


def test_another_experiment_is_refused_with_the_difference_and_the_way_out(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.open(EXPERIMENT)
    run.metrics_file.write_text("kept")
    other = dataclasses.replace(EXPERIMENT, vocab_size=7)
    with pytest.raises(ValueError, match="vocab_size: 32000 -> 7") as caught:
        run.open(other)
    assert "--fresh" in str(caught.value) and "--name" in str(caught.value)
    assert "width" not in str(caught.value)
    assert run.experiment() == EXPERIMENT
    assert run.metrics_file.read_text() == "kept"


def test_a_free_field_may_change_and_no_other(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.open(EXPERIMENT)
    run.metrics_file.write_text("kept")
    other = dataclasses.replace(EXPERIMENT, vocab_size=7)
    run.open(other, free="vocab_size")
    assert run.experiment() == other and run.metrics_file.read_text() == "kept"
    with pytest.raises(ValueError, match="max_length") as caught:
        run.open(dataclasses.replace(EXPERIMENT, max_length=9), free="vocab_size")
    assert "vocab_size" not in str(caught.value) and run.experiment() == other


def test_a_followed_run_is_read_and_never_written(tmp_path):
    run, followed = RunDirectory(tmp_path / "run"), FollowedRun(tmp_path / "run")
    followed.open(EXPERIMENT)
    followed.write_sample(1, "a")
    followed.write_tokenizer(None)
    followed.write_card(a=1)
    assert not run.path.exists()
    run.open(EXPERIMENT)
    followed.delete()
    assert followed.experiment() == EXPERIMENT and [path.name for path in run.path.iterdir()] == ["experiment.txt"]
    writing = [name for name in vars(RunDirectory) if name.startswith("write_") or name in ("open", "delete")]
    assert set(writing) <= vars(FollowedRun).keys()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_in_the_way_is_a_clear_error(tmp_path, place):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match=r"cannot be written \(.*--runs-dir"):
        RunDirectory(tmp_path / place).open(EXPERIMENT)
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unwritable for the superuser")
def test_a_folder_without_permission_is_a_clear_error(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(ValueError, match="cannot be written"):
        RunDirectory(tmp_path / "locked" / "run").open(EXPERIMENT)


def test_a_full_disk_is_a_clear_error_and_leaves_no_half_experiment(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    run = RunDirectory(tmp_path / "run")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="No space left on device"):
        run.open(EXPERIMENT)
    assert not (run.path / "experiment.txt").exists()
    monkeypatch.undo()
    run.open(EXPERIMENT)
    assert run.experiment() == EXPERIMENT


def test_a_folder_that_is_no_run_says_so(tmp_path):
    with pytest.raises(ValueError, match="is not a run directory: it has no experiment.txt"):
        RunDirectory(tmp_path).experiment()


def test_records_pass_over_a_line_cut_by_a_crash(tmp_path):
    run = RunDirectory(tmp_path)
    whole = _record("train", 2, loss=0.5)
    for cut in range(len(whole)):
        run.metrics_file.write_text(_record("train", 1, loss=1.0) + "\n" + whole[:cut])
        assert [record["step"] for record in run.records()] == [1]
    run.metrics_file.write_text(_record("train", 1, loss=1.0) + "\n" + whole)
    assert [record["step"] for record in run.records()] == [1, 2]


def test_of_a_repeated_step_the_last_written_counts_within_its_kind(tmp_path):
    run = RunDirectory(tmp_path)
    lines = [
        _record("train", 1, loss=1.0),
        _record("train", 2, loss=2.0),
        _record("eval/validation", 2, loss=9.0),
        _record("train", 3, loss=3.0),
        _record("train", 2, loss=2.5),  # a resumed run goes over steps 2 and 3 again
        _record("eval/validation", 2, loss=9.5),
        _record("eval/test", 2, loss=8.0),
    ]
    run.metrics_file.write_text("\n".join(lines) + "\n")
    found = {(record["kind"], record["step"]): record["loss"] for record in run.records()}
    assert found == {
        ("train", 1): 1.0,
        ("train", 2): 2.5,
        ("train", 3): 3.0,
        ("eval/validation", 2): 9.5,
        ("eval/test", 2): 8.0,
    }
    steps = [record["step"] for record in run.records()]
    assert steps == sorted(steps) and len(steps) == 5


def test_no_records_before_the_first_step(tmp_path):
    assert list(RunDirectory(tmp_path).records()) == []


def test_the_card_lists_every_start(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.card() == {}
    run.write_card(commit="a", seed=1)
    run.write_card(commit="b", seed=1)
    assert run.card() == {"starts": [{"commit": "a", "seed": 1}, {"commit": "b", "seed": 1}]}


def test_machine_card_is_json_and_names_what_a_figure_depends_on():
    card = json.loads(json.dumps(run_directory.machine_card()))
    assert {"commit", "jax", "python", "device_kind", "device_count", "command"} <= set(card)
    assert card["device_count"] >= 1

"""A run directory belongs to one experiment, survives crashes, and gives every record once."""

import json
import os
import shutil

import pytest

from llm_jax.core import config_text, run_directory
from llm_jax.core.run_directory import ReadOnlyRun, RunDirectory
from llm_jax.models.families.llama import llama

EXPERIMENT = llama(2, 4, 16, hidden=24)


def test_an_experiment_comes_back_from_its_file(tmp_path):
    run = RunDirectory(tmp_path / "deep" / "run")
    run.open(EXPERIMENT)
    assert run.experiment_file.read_text() == config_text.to_text(EXPERIMENT)
    assert run.experiment() == EXPERIMENT


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, "line"])
def test_a_truncated_experiment_is_named_and_never_read_as_another(tmp_path, share):
    run = RunDirectory(tmp_path / "run")
    run.open(EXPERIMENT)
    run.write_card(experiment_digest=config_text.digest(EXPERIMENT))
    assert run.experiment() == EXPERIMENT
    text = run.experiment_file.read_text()
    # Without its last line it is whole to a parser, which gives the missing field its default.
    run.experiment_file.write_text(
        "".join(text.splitlines(True)[:-1]) if share == "line" else text[: int(share * len(text))]
    )
    with pytest.raises(ValueError, match=r"experiment.txt is damaged"):
        run.experiment()


def test_bytes_that_are_no_text_are_named(tmp_path):
    run = RunDirectory(tmp_path)
    run.experiment_file.write_bytes(b"\xff\x00" * 9)
    with pytest.raises(ValueError, match=r"experiment.txt cannot be read"):
        run.experiment()


@pytest.mark.parametrize("content", ["[]", "", "{", '{"starts": 3}', '{"starts": [1]}', "null", "[" * 9999, '{"a": 1}'])
def test_a_damaged_card_is_named_kept_and_followed_by_a_new_one(tmp_path, content):
    run = RunDirectory(tmp_path)
    run.card_file.write_text(content)
    with pytest.raises(ValueError, match="card.json is damaged"):
        run.card()
    assert run.read_card()[0] == [] and "card.json is damaged" in run.damage()[0]
    run.write_card(seed=1)
    assert run.card() == {"starts": [{"seed": 1}]} and run.damage() == []
    assert (tmp_path / "card.damaged.json").read_text() == content


def test_the_card_says_how_a_start_ended(tmp_path):
    run = RunDirectory(tmp_path)
    run.end_card("finished")
    assert run.card() == {}, "there was no start"
    run.write_card(seed=1)
    run.end_card("diverged", "update 3")
    run.write_card(seed=2)
    assert [start.get("ended") for start in run.card()["starts"]] == [{"how": "diverged", "why": "update 3"}, None]


def test_only_a_run_is_deleted_and_its_lock_stays(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.open(EXPERIMENT)
    run.metrics_file.write_text("{}")
    run.checkpoints.mkdir()
    with run.locked(print):
        run.delete()
        assert [path.name for path in run.path.iterdir()] == ["lock.json"]
    assert list(run.path.iterdir()) == []
    run.metrics_file.write_text("{}")
    run.delete()  # what a kill left of an earlier deletion
    (run.path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is not a run directory, so it is not deleted"):
        run.delete()


def test_files_that_were_deleted_are_put_back(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.open(EXPERIMENT)
    run.write_card(seed=1)
    files = run.small_files()
    shutil.rmtree(run.path)
    run.put_back(files)
    assert run.experiment() == EXPERIMENT and run.card() == {"starts": [{"seed": 1}]}
    run.write_card(seed=2)
    run.put_back(files)
    assert len(run.card()["starts"]) == 2, "a file that is there stays as it is"


def test_a_followed_run_is_read_and_never_written(tmp_path):
    run, followed = RunDirectory(tmp_path / "run"), ReadOnlyRun(tmp_path / "run")
    followed.open(EXPERIMENT)
    followed.write_sample(1, "a")
    followed.write_tokenizer(None)
    followed.write_card(a=1)
    assert not run.path.exists()
    run.open(EXPERIMENT)
    followed.delete()
    assert followed.experiment() == EXPERIMENT and [path.name for path in run.path.iterdir()] == ["experiment.txt"]
    with followed.locked(print):
        assert not run.lock_file.exists()
    others = ("open", "delete", "locked", "put_back", "set_aside_after", "end_card")
    writing = [name for name in vars(RunDirectory) if name.startswith("write_") or name in others]
    assert set(writing) <= vars(ReadOnlyRun).keys()


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

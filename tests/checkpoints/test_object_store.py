"""Checkpoints at gs://: what was saved comes back, and what was saved in part does not count."""

import pytest

from llm_jax.checkpoints.restore import COMMITTED, saved_steps
from llm_jax.core.paths import at
from tests.checkpoints.states import abstract, assert_identical, checkpoints, saved, train_state
from tests.helpers import object_store


@pytest.fixture
def folder(tmp_path, monkeypatch):
    object_store.install(tmp_path, monkeypatch)
    return at("gs://bucket/run/checkpoints")


def test_everything_comes_back_and_the_last_are_kept(folder):
    assert saved_steps(folder) == ()
    saved(folder, 1, 2, 3, keep_last=2, keep_best=0)
    assert saved_steps(folder) == (2, 3) and (folder / "3" / COMMITTED).exists()
    with checkpoints(folder) as opened:
        assert opened.latest_step == 3
        restored = opened.restore(abstract(train_state()))
    assert_identical(restored.state, train_state(3))
    assert (restored.step, restored.data, restored.loop) == (3, {"position": 3}, {"tokens": 30})


def test_a_save_that_was_cut_short_is_no_checkpoint_and_is_made_again(folder):
    saved(folder, 1, 2)
    (folder / "2" / COMMITTED).unlink()
    (folder / "7" / "state" / "array").write_bytes(b"half")
    assert saved_steps(folder) == (1,)
    with checkpoints(folder) as opened:
        assert not (folder / "7").exists() and not (folder / "2").exists()
        opened.save(2, train_state(5), {}, {})
        opened.wait()
        assert_identical(opened.restore(abstract(train_state())).state, train_state(5))


def test_later_checkpoints_are_set_aside(folder):
    saved(folder, 1, 2, 3, keep_last=3)
    with checkpoints(folder) as opened:
        assert opened.go_back(1) == [3, 2]
        opened.save(2, train_state(4), {}, {})
    assert saved_steps(folder) == (1, 2)
    assert {path.name for path in folder.iterdir()} >= {"1", "2", "later-2", "later-3"}


def test_a_damaged_checkpoint_gives_way_to_the_one_before(folder):
    saved(folder, 1, 2)
    largest = max((folder / "2" / "state").rglob("*"), key=lambda path: path.stat().length)
    largest.write_bytes(b"\0" * largest.stat().length)
    with checkpoints(folder) as opened:
        restored = opened.restore(abstract(train_state()))
    assert restored.step == 1 and [step for step, _ in restored.skipped] == [2]
    assert (folder / "corrupt-2").is_dir()

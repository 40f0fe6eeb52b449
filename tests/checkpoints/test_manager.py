import gc
import resource
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.checkpoints.checkpoint_config import CheckpointConfig
from llm_jax.checkpoints.restore import saved_steps
from llm_jax.train.state import TrainState
from tests.checkpoints.states import abstract, assert_identical, checkpoints, saved, train_state


@pytest.mark.parametrize("field", ["every", "keep_last", "keep_best"])
def test_a_config_out_of_range_is_refused(field):
    with pytest.raises(ValueError, match=f"{field} is -1"):
        CheckpointConfig(**{field: -1})


def test_everything_comes_back(tmp_path):
    state, data, loop = train_state(3), {"iterator": b"\x00\xff", "at": [1, {"b": None}]}, {"tokens": 12, "best": 0.1}
    with checkpoints(tmp_path) as opened:
        assert opened.save(3, state, data, loop)
    with checkpoints(tmp_path) as opened:
        restored = opened.restore(abstract(state))
    assert_identical(restored.state, state)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(n) for n in ("float32", "bfloat16", "int32")}
    assert (restored.step, restored.data, restored.loop, restored.skipped) == (3, data, loop, ())
    assert restored.run.experiment == "= an experiment\n"


def test_nothing_to_restore(tmp_path):
    with checkpoints(tmp_path / "new") as opened:
        assert opened.restore(abstract(train_state())) is None
        assert (opened.latest_step, opened.best_step) == (None, None)


def test_the_last_and_the_best_are_kept(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: None, 4: 2.0, 5: float("nan"), 6: None, 7: 1.5}
    with checkpoints(tmp_path, keep_last=2, keep_best=2) as opened:
        for step, loss in losses.items():
            opened.save(step, train_state(step), {}, {}, {} if loss is None else {"validation/loss": loss})
            opened.wait()
    assert saved_steps(tmp_path) == (2, 6, 7)
    with checkpoints(tmp_path, keep_last=1, keep_best=1) as opened:
        assert (opened.best_step, opened.latest_step) == (2, 7)
        opened.save(8, train_state(8), {}, {}, {"validation/loss": 1.0})
        opened.wait()
        assert opened.best_step == 8
    assert saved_steps(tmp_path) == (8,)


def test_without_a_loss_only_the_last_are_kept(tmp_path):
    saved(tmp_path, 1, 2, 3, 4, keep_last=1, keep_best=3)
    assert saved_steps(tmp_path) == (4,)


def test_a_step_with_other_metrics_alone_is_not_the_best(tmp_path):
    with checkpoints(tmp_path, keep_last=1, keep_best=1) as opened:
        for step, metrics in enumerate(({"validation/loss": 2.0}, {"copying/error": 0.0}, {}), start=1):
            opened.save(step, train_state(step), {}, {}, metrics)
        opened.wait()
        assert opened.best_step == 1
    assert saved_steps(tmp_path) == (1, 3)


def test_a_step_that_is_saved_is_left_as_it_is(tmp_path):
    saved(tmp_path, 1, 2)
    with checkpoints(tmp_path) as opened:
        assert not opened.save(2, train_state(9), {}, {})
        assert_identical(opened.restore(abstract(train_state())).state, train_state(2))


def test_a_state_donated_right_after_the_save_is_saved_as_it_was(tmp_path):
    update = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = jax.block_until_ready(train_state(0, width=700))
    before = jax.tree.map(jnp.copy, state)
    with checkpoints(tmp_path) as opened:
        opened.save(1, state, {}, {})
        for _ in range(30):
            state = update(state)
        jax.block_until_ready(state)
        restored = opened.restore(abstract(before))
    assert float(state.params["stack"]["0"]["bias"][0]) != float(before.params["stack"]["0"]["bias"][0])
    assert_identical(restored.state, before)


def test_a_save_goes_on_in_the_background(tmp_path, monkeypatch):
    """The commit waits for a slow rename; `save` does not."""
    from orbax.checkpoint.path import atomicity

    finalize = atomicity.AtomicRenameTemporaryPath.finalize

    async def slow(self):
        time.sleep(0.2)
        await finalize(self)

    monkeypatch.setattr(atomicity.AtomicRenameTemporaryPath, "finalize", slow)
    with checkpoints(tmp_path) as opened:
        opened.save(1, train_state(), {}, {})
        assert saved_steps(tmp_path) == () and opened.latest_step is None
        opened.wait()
        assert opened.latest_step == 1


def test_temporaries_of_a_killed_save_are_removed_at_start(tmp_path):
    saved(tmp_path, 1)
    temporary = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", temporary)
    assert saved_steps(tmp_path) == (1,)
    with checkpoints(tmp_path) as opened:
        assert not temporary.exists()
        assert opened.restore(abstract(train_state())).step == 1


def test_another_tokenizer_is_refused(tmp_path):
    saved(tmp_path, 5)
    with pytest.raises(ValueError, match=r"digest fedcba9876543210.*checkpoint 5 .*with 0123456789abcdef.*use the tok"):
        checkpoints(tmp_path, tokenizer_digest="fedcba9876543210")


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written.*make it writable"):
        checkpoints(tmp_path / "file" / "checkpoints")


def test_a_failed_write_leaves_the_previous_checkpoint(tmp_path):
    """A limit on the size of a file stands for the full disk: the write fails in the same place."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    opened = checkpoints(tmp_path, keep_last=1)
    opened.save(1, train_state(1, width=400), {}, {})
    opened.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="checkpoint 2 could not be written"):
            opened.save(2, train_state(2, width=400), {}, {})
            opened.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    _assert_went_on(opened, width=400)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB: room for three of the states below."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip(
            "mounting a small file system needs root; test_a_failed_write_... covers the path with a size limit"
        )
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("spare", [0, 200_000])
@pytest.mark.parametrize("surfaces_in", ["wait", "save", "close"])
def test_a_full_disk_leaves_the_previous_checkpoint(small_disk, surfaces_in, spare, caplog):
    opened = checkpoints(small_disk, keep_last=1)
    opened.save(1, train_state(1, width=250), {}, {})
    opened.wait()
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(b"\0" * (free - spare))
    with pytest.raises(OSError, match=r"checkpoint 2 .*bytes were free.*\n.*step 1.*Make room"):
        opened.save(2, train_state(2, width=250), {}, {})
        second_try = {
            "wait": opened.wait,
            "close": opened.close,
            "save": partial(opened.save, 3, train_state(), {}, {}),
        }
        second_try[surfaces_in]()
    (small_disk / "ballast").unlink()
    gc.collect()
    assert caplog.text == "", "the writes that orbax abandons complain"
    if surfaces_in != "close":
        _assert_went_on(opened, width=250)


def test_a_disk_that_is_full_of_frozen_models_is_reported_and_they_are_written_when_there_is_room(small_disk):
    frozen = {"teacher": {"kernel": np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)}}
    state = TrainState(jnp.int32(1), {"w": jnp.ones(2)}, {}, frozen=jax.tree.map(jnp.asarray, frozen))
    with checkpoints(small_disk) as opened:
        (small_disk / "ballast").write_bytes(b"\0" * (shutil.disk_usage(small_disk).free - 50_000))
        with pytest.raises(OSError, match=r"checkpoint 1 could not be written.*bytes were free"):
            opened.save(1, state, {}, {})
        (small_disk / "ballast").unlink()
        assert opened.save(1, state, {}, {})
        opened.wait()
        found = opened.restore(abstract(state)).state.frozen
    np.testing.assert_array_equal(found["teacher"]["kernel"], frozen["teacher"]["kernel"])


def _assert_went_on(opened, width):
    """After the failed save of step 2: step 1 is whole, and with room again step 2 can be saved."""
    assert opened.latest_step == 1
    like = abstract(train_state(1, width=width))
    assert_identical(opened.restore(like).state, train_state(1, width=width))
    assert opened.save(2, train_state(2, width=width), {}, {})
    opened.close()
    assert saved_steps(opened._directory) == (2,)
    assert_identical(opened.restore(like).state, train_state(2, width=width))


def test_closing_twice_and_reading_meanwhile_do_no_harm(tmp_path):
    opened = checkpoints(tmp_path, keep_last=3)
    with ThreadPoolExecutor() as pool:
        for step in (1, 2, 3):
            opened.save(step, train_state(step), {}, {})
            pool.submit(saved_steps, tmp_path)
    opened.close()
    opened.close()
    assert saved_steps(tmp_path) == (1, 2, 3)


def test_orbax_is_quiet(tmp_path, capfd, caplog):
    with checkpoints(tmp_path, keep_last=1) as opened:
        for step in (1, 2):
            opened.save(step, train_state(step), {}, {})
        opened.restore(abstract(train_state()))
    assert (capfd.readouterr().err, caplog.text) == ("", "")

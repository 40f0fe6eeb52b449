import gc
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from llm_jax.checkpoints.digest import not_finite
from llm_jax.checkpoints.noise import quiet_orbax
from llm_jax.checkpoints.restore import best_step, restore_params, restore_state, saved_steps
from tests.checkpoints.states import abstract, assert_identical, checkpoints, saved, train_state
from tests.helpers import compiler

DIGEST = "0123456789abcdef"
LIKE = abstract(train_state())


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("two_steps")
    saved(directory, 1, 2)
    return directory


@pytest.fixture
def run(two_steps, tmp_path) -> Path:
    """A directory with checkpoints 1 and 2, to be damaged at will."""
    return Path(shutil.copytree(two_steps, tmp_path / "checkpoints"))


def _files(step_directory: Path) -> list[Path]:
    return sorted(path for path in step_directory.rglob("*") if path.is_file())


def _largest(step_directory: Path) -> Path:
    return max(_files(step_directory), key=lambda path: path.stat().st_size)


def _truncate(step_directory: Path) -> None:
    os.truncate(_largest(step_directory), _largest(step_directory).stat().st_size // 2)


def _fill_with_garbage(step_directory: Path) -> None:
    path = _largest(step_directory)
    path.write_bytes(random.Random(0).randbytes(path.stat().st_size))


def _empty_every_file(step_directory: Path) -> None:
    for path in _files(step_directory):
        os.truncate(path, 0)


def _remove_everything(step_directory: Path) -> None:
    shutil.rmtree(step_directory)
    step_directory.mkdir()


def _change_the_record(step_directory: Path) -> None:
    path = step_directory / "record" / "metadata"
    value = json.loads(path.read_text())
    value["text"] = value["text"].replace('"position": 2', '"position": 3')
    path.write_text(json.dumps(value))


def _replace_by_another_step(step_directory: Path) -> None:
    shutil.rmtree(step_directory)
    shutil.copytree(step_directory.with_name("1"), step_directory)


DAMAGES = {
    "array file truncated": _truncate,
    "array file garbage": _fill_with_garbage,
    "array file missing": lambda step: _largest(step).unlink(),
    "array index missing": lambda step: (step / "state" / "manifest.ocdbt").unlink(),
    "array metadata missing": lambda step: (step / "state" / "_METADATA").unlink(),
    "record missing": lambda step: (step / "record" / "metadata").unlink(),
    "record changed": _change_the_record,
    "another step": _replace_by_another_step,
    "every file empty": _empty_every_file,
    "directory empty": _remove_everything,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_named(run, damage, caplog):
    DAMAGES[damage](run / "2")
    restored = restore_state(run, LIKE, DIGEST)
    assert_identical(restored.state, train_state(1))
    assert (restored.step, restored.data) == (1, {"position": 1})
    assert [step for step, _ in restored.skipped] == [2]
    assert "checkpoint 2" in caplog.text and restored.skipped[0][1] in caplog.text


def test_damage_is_told_in_one_line(run, monkeypatch):
    """The reads that orbax abandons when one fails keep silent."""
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: shown.append(str(unraisable)))
    quiet_orbax.cache_clear()
    for path in (run / "2" / "state" / "ocdbt.process_0" / "d").iterdir():
        path.write_bytes(random.Random(0).randbytes(path.stat().st_size))
    restored = restore_state(run, LIKE, DIGEST)
    gc.collect()
    time.sleep(0.2)
    quiet_orbax.cache_clear()
    assert "\n" not in restored.skipped[0][1] and "arrays cannot be read" in restored.skipped[0][1]
    assert shown == []


def test_a_flipped_byte_never_passes(run):
    """In any file: what comes back is what was saved, from this checkpoint or the one before. In the file of the
    arrays, where the format itself has no checksum, the flip is always found."""
    draw, reasons = random.Random(0), []
    for path in _files(run / "2"):
        whole = path.read_bytes()
        for _ in range(3):
            position = draw.randrange(len(whole))
            changed = bytes([whole[position] ^ draw.randrange(1, 256)])
            path.write_bytes(whole[:position] + changed + whole[position + 1 :])
            restored = restore_state(run, LIKE, DIGEST)
            assert_identical(restored.state, train_state(restored.step))
            assert restored.data == {"position": restored.step}
            assert restored.step == 1 or path != _largest(run / "2")
            reasons += [reason for _, reason in restored.skipped]
        path.write_bytes(whole)
    assert any("differs from what was saved" in reason for reason in reasons)
    assert restore_state(run, LIKE, DIGEST).step == 2


def test_after_falling_back_the_lost_step_can_be_saved_again(run):
    for attempt in range(2):
        _fill_with_garbage(run / "2")
        with checkpoints(run) as opened:
            assert opened.restore(LIKE).step == 1
            assert opened.latest_step == 1
            assert opened.save(2, train_state(2), {"position": 2}, {})
        assert len(list(run.glob("corrupt-2*"))) == attempt + 1
        assert_identical(restore_state(run, LIKE, DIGEST).state, train_state(2))
    assert saved_steps(run) == (1, 2)


def test_nothing_is_moved_where_none_is_good(run):
    _truncate(run / "1")
    _remove_everything(run / "2")
    with checkpoints(run) as opened, pytest.raises(ValueError, match=r"can be used:\n  2: .*\n  1: .*\n.*--fresh"):
        opened.restore(LIKE)
    assert saved_steps(run) == (1, 2)


def test_a_step_that_was_asked_for_is_that_step_or_an_error(run):
    assert restore_state(run, LIKE, DIGEST, step=1).step == 1
    _truncate(run / "2")
    with pytest.raises(ValueError, match=r"can be used:\n  2: "):
        restore_state(run, LIKE, DIGEST, step=2)
    with pytest.raises(ValueError, match=r"no checkpoint of step 3: choose one of \[1, 2\]"):
        restore_state(run, LIKE, DIGEST, step=3)


@pytest.mark.parametrize(
    "other", [train_state(width=8), train_state(ema=True), train_state().replace(step=jnp.float32(0))]
)
def test_another_state_is_an_error_and_no_damage(two_steps, other):
    assert jax.tree.map(jnp.shape, other) != jax.tree.map(jnp.shape, train_state()) or other.step.dtype == jnp.float32
    with pytest.raises(
        ValueError, match=r"checkpoint 2 in .* another state.*arrays differ:\n  .*: checkpoint .*expected"
    ):
        restore_state(two_steps, abstract(other), DIGEST)


def test_another_tokenizer_is_refused(two_steps):
    with pytest.raises(ValueError, match="digest ffff.*use the tokenizer it was trained with"):
        restore_params(two_steps, LIKE.params, "ffff")


def test_parameters_alone_can_be_read(tmp_path):
    state = train_state(4, ema=True)
    with checkpoints(tmp_path) as opened:
        opened.save(4, state, {}, {})
    unplaced = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state.params)
    for part in ("params", "ema"):
        assert_identical(restore_params(tmp_path, unplaced, DIGEST, part=part).state, getattr(state, part))
    assert float(state.params["embed"][0, 0]) != float(state.ema["embed"][0, 0])


def test_a_part_that_was_not_saved_is_an_error(two_steps):
    with pytest.raises(ValueError, match="ema/embed: checkpoint has none"):
        restore_params(two_steps, LIKE.params, DIGEST, part="ema")


def test_reading_changes_nothing(run):
    _change_the_record(run / "2")
    temporary = run / "3.orbax-checkpoint-tmp"
    temporary.mkdir()
    before = _files(run)
    assert restore_params(run, LIKE.params, DIGEST).step == 1
    assert _files(run) == before and temporary.exists()


def test_the_best_step_is_read_from_disk(tmp_path):
    with checkpoints(tmp_path, keep_last=4, best_metric="loss") as opened:
        for step, loss in ((1, float("nan")), (2, 1.0), (3, 1.5), (4, 2.0)):
            opened.save(step, train_state(step), {}, {}, {"loss": loss})
    assert best_step(tmp_path, "loss") == 2
    _remove_everything(tmp_path / "2")
    assert best_step(tmp_path, "loss") == 3
    for never in ("validation/loss", ""):
        with pytest.raises(ValueError, match=rf"no checkpoint in .* has a finite value of '{never}'.*'loss'.*--step"):
            best_step(tmp_path, never)


def test_without_a_finite_value_no_checkpoint_is_the_best(tmp_path):
    with checkpoints(tmp_path, best_metric="loss") as opened:
        opened.save(1, train_state(1), {}, {}, {"loss": float("nan")})
    with pytest.raises(ValueError, match="no checkpoint in .* has a finite value of 'loss'"):
        best_step(tmp_path, "loss")


def test_only_a_folder_named_as_a_save_names_it_is_a_checkpoint(run):
    for name in ("00016", "-3", "1e3", "7.5", "٣", "3 ", "+4"):
        (run / name).mkdir()
    (run / "9").write_text("no folder")
    assert saved_steps(run) == (1, 2)
    with checkpoints(run) as opened:
        assert opened.restore(LIKE).step == 2
        assert opened.save(3, train_state(3), {}, {})
    assert saved_steps(run) == (2, 3) and (run / "00016").is_dir()


def test_later_checkpoints_are_set_aside_and_can_be_brought_back(run):
    for attempt in range(2):
        with checkpoints(run) as opened:
            assert opened.go_back(1) == [2] and opened.latest_step == 1
            assert opened.save(2, train_state(2), {"position": 2}, {})
        assert len(list(run.glob("later-2*"))) == attempt + 1
    shutil.rmtree(run / "2")
    (run / "later-2").rename(run / "2")
    assert_identical(restore_state(run, LIKE, DIGEST).state, train_state(2))


def test_a_value_that_is_not_finite_is_found_in_any_array():
    state = train_state(1)
    assert not_finite(state) == []
    bad = state.replace(params=state.params | {"embed": state.params["embed"].at[3, 5].set(jnp.nan)})
    assert not_finite(bad) == ["params/embed"]
    average = jax.tree.map(lambda x: jnp.full_like(x, jnp.inf) if x.dtype == jnp.float32 else x, state.opt_state)
    found = not_finite(state.replace(opt_state=average))
    assert found and all(name.startswith("opt_state/") for name in found)


SHARDED = """
import sys
import time
from pathlib import Path
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from llm_jax.checkpoints.noise import quiet_orbax
from llm_jax.checkpoints.restore import restore_state
from tests.checkpoints.states import abstract, assert_identical, checkpoints, train_state

assert jax.device_count() == 8
mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
one = SingleDeviceSharding(jax.devices()[0])
both = lambda x: NamedSharding(mesh, PartitionSpec("b", "a") if x.ndim == 2 else PartitionSpec())
rows = lambda x: NamedSharding(mesh, PartitionSpec(("a", "b")) if x.ndim else PartitionSpec())
placements = {"one": lambda x: one, "both": both, "rows": rows}
place = lambda tree, where: jax.tree.map(lambda x: jax.device_put(x, placements[where](x)), tree)
for number, (source, target) in enumerate((("both", "one"), ("one", "rows"), ("rows", "both"))):
    directory = Path(sys.argv[1]) / str(number)
    state = place(train_state(7), source)
    with checkpoints(directory) as opened:
        opened.save(7, state, {}, {})
    like = abstract(place(train_state(0), target))
    assert like.params["embed"].sharding != state.params["embed"].sharding
    restored = restore_state(directory, like, "0123456789abcdef")
    assert_identical(restored.state, state)
    assert jax.tree.all(jax.tree.map(lambda x, y: x.sharding == y.sharding, restored.state, like))
print("equal")
"""


def test_a_state_comes_back_under_another_sharding(tmp_path):
    environment = os.environ | compiler.devices(8) | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SHARDED, str(tmp_path)]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    assert result.stdout == "equal\n", result.stderr


def test_a_state_in_the_hosts_memory_is_saved_and_comes_back_there(tmp_path):
    state = train_state(1)
    there = jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind("pinned_host")), state.opt_state)
    with checkpoints(tmp_path) as opened:
        opened.save(1, state.replace(opt_state=there), {}, {})
        restored = opened.restore(abstract(state.replace(opt_state=there))).state
    assert_identical(restored, state)
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(restored.opt_state)} == {"pinned_host"}

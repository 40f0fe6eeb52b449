"""Paths at gs:// do what run directories ask of paths, and paths of a file system are pathlib's own."""

import sys
import threading
from pathlib import Path

import pytest
from fsspec.registry import _registry

from llm_jax.core import files, metrics_file, object_lock, records, run_lock
from llm_jax.core.metrics_file import open_metrics
from llm_jax.core.object_lock import ObjectLock
from llm_jax.core.paths import at, create, is_object
from llm_jax.core.run_directory import RunDirectory
from llm_jax.core.run_lock import RunHeld
from llm_jax.core.source import SourceCode, loaded
from tests.helpers import object_store


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    object_store.install(tmp_path, monkeypatch)
    return at("gs://bucket")


def test_a_path_of_the_file_system_is_pathlib_s_own(tmp_path):
    assert type(at(str(tmp_path))) is type(tmp_path) and at(tmp_path) == at(str(tmp_path)) == tmp_path
    assert not is_object(at("runs"))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("s3://bucket/runs", "scheme s3: only file systems and gs:// are supported"),
        ("gs://", "has no bucket"),
        (Path("gs://bucket/runs"), "has one slash after gs:"),
    ],
)
def test_a_place_where_no_run_can_lie_is_refused(where, message):
    with pytest.raises(ValueError, match=message):
        at(where)


def test_without_the_package_gs_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.delitem(_registry, "gcs", raising=False)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match=r"pip install 'llm-jax\[gcs\]'"):
        at("gs://bucket/runs")


def test_files_and_folders_come_and_go(bucket):
    folder = bucket / "runs" / "one"
    assert not folder.exists() and not folder.is_dir()
    files.write_atomically(folder / "a.txt", "日本語")
    files.write_atomically(folder / "deep" / "b.py", b"\xff")
    assert folder.is_dir() and (folder / "a.txt").is_file() and not folder.is_file()
    assert (folder / "a.txt").read_text(encoding="utf-8") == "日本語"
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "deep"]
    assert [str(path) for path in folder.rglob("*.py")] == ["gs://bucket/runs/one/deep/b.py"]
    assert [path.name for path in folder.glob("*.txt")] == ["a.txt"]
    assert files.unused(folder / "a.txt").name == "a-2.txt"
    folder.rename(bucket / "runs" / "two")
    moved = bucket / "runs" / "two"
    assert not folder.exists() and (moved / "deep" / "b.py").read_bytes() == b"\xff"
    files.remove(moved)
    assert not moved.exists()
    assert moved.resolve() == moved.absolute() == moved


def test_of_two_creations_one_succeeds(bucket):
    assert create(bucket / "lock", b"1") and not create(bucket / "lock", b"2")
    assert (bucket / "lock").read_bytes() == b"1"


def test_records_are_uploaded_as_they_grow_and_again_after_they_were_deleted(bucket, monkeypatch):
    monkeypatch.setattr(metrics_file, "UPLOAD_SECONDS", 0.02)
    path = bucket / "metrics.jsonl"
    lines = [f'{{"kind": "train", "step": {step}}}' for step in range(4)]
    steps = lambda: [record["step"] for record in records.read(path)[0]]  # noqa: E731
    file = open_metrics(path)
    assert path.exists()
    file.append(lines[0])
    while steps() != [0]:
        pass
    path.unlink()
    file.append(lines[1])
    file.keep()
    assert steps() == [0, 1]
    file.append(lines[2])
    file.close()
    again = open_metrics(path)
    again.append(lines[3])
    again.close()
    assert steps() == [0, 1, 2, 3]


def test_an_upload_that_fails_is_made_again_and_a_last_one_is_told(bucket, monkeypatch):
    monkeypatch.setattr(metrics_file, "UPLOAD_SECONDS", 0.02)
    path, failed = bucket / "metrics.jsonl", threading.Event()
    file = open_metrics(path)

    def fail(self, content):
        failed.set()
        raise OSError("no route to host")

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "write_bytes", fail)
        file.append('{"kind": "train", "step": 1}')
        assert failed.wait(10)
        with pytest.raises(OSError, match="no route"):
            file.keep()
    file.close()
    assert records.read(path)[0] == [{"kind": "train", "step": 1}]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(object_lock, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(object_lock, "_SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(run_lock, "STALE_SECONDS", 0.5)


def elsewhere(lock: ObjectLock, monkeypatch) -> None:
    """Takes the lock as a process of another machine does."""
    with monkeypatch.context() as patch:
        patch.setattr(run_lock, "_kernel", lambda: "another machine")
        lock.take(print)


def test_a_lock_that_is_held_is_refused_and_one_that_was_released_is_free(bucket, quick):
    one, other = (ObjectLock(bucket / "run" / "lock.json") for _ in range(2))
    one.take(print)
    with pytest.raises(RunHeld, match="is in use by process"):
        other.take(print)
    one.release()
    other.take(print)
    other.check()
    other.release()
    assert not (bucket / "run").exists()


def test_a_holder_of_another_machine_is_seen_by_its_beat_and_gives_way_once_silent(bucket, quick, monkeypatch):
    path, said = bucket / "lock.json", []
    one, other = ObjectLock(path), ObjectLock(path)
    elsewhere(one, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(run_lock.Holder, "has_ended", lambda self: None)
        with pytest.raises(RunHeld):
            other.take(said.append)
        assert said and "waiting for its end" in said[0]
        one._done.set()  # it gives no sign of life any more
        other.take(said.append)
    other.check()
    with pytest.raises(RunHeld, match="this process lost"):
        one.check()
    one.release()
    other.check()
    other.release()


def test_a_holder_that_has_ended_is_followed_at_once(bucket, quick, monkeypatch):
    one, other = (ObjectLock(bucket / "lock.json") for _ in range(2))
    one.take(print)
    one._done.set()
    monkeypatch.setattr(run_lock, "STALE_SECONDS", 1e9)
    monkeypatch.setattr(run_lock.Holder, "has_ended", lambda self: True)
    other.take(print)
    other.release()


def test_a_lock_that_was_deleted_is_made_again(bucket, quick):
    lock = ObjectLock(bucket / "lock.json")
    lock.take(print)
    (bucket / "lock.json").unlink()
    lock.check()
    assert (bucket / "lock.json").exists()
    lock.release()


def test_a_user_s_own_files_are_imported_from_a_copy(bucket):
    folder = bucket / "run" / "source"
    SourceCode({"fox": "from own_den import DEN\nFOX = DEN + 1\n", "own_den": "DEN = 41\n"}).write(folder)
    with loaded(folder):
        assert sys.modules["fox"].FOX == 42
    assert "fox" not in sys.modules
    SourceCode({"fox": "FOX = 1\n"}).write(folder)
    assert SourceCode.read(folder).modules == {"fox": "FOX = 1\n"}


def test_a_run_directory_is_deleted_with_all_it_holds(bucket):
    run = RunDirectory(bucket / "run")
    run.write_experiment("name = 1\n")
    run.write_sample(3, "text")
    assert run.samples.is_dir() and not run.has_begun
    run.delete()
    assert not run.path.exists()

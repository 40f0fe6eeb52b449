"""A trace begins and ends with the steps that were asked for, and lies in the run directory wherever that is."""

import types
from pathlib import Path

import jax
import pytest

from llm_jax.core.paths import at
from llm_jax.core.run_directory import RunDirectory
from llm_jax.train import ProfileConfig
from tests.helpers import object_store


@pytest.fixture
def profiler(monkeypatch):
    """Stands for jax's profiler: writes a file when it stops."""
    calls = []

    def start(folder):
        calls.append(Path(folder))

    def stop():
        (calls[-1] / "plugins").mkdir(parents=True)
        (calls[-1] / "plugins" / "trace.pb").write_bytes(b"trace")
        calls.append("stopped")

    monkeypatch.setattr(jax.profiler, "start_trace", start)
    monkeypatch.setattr(jax.profiler, "stop_trace", stop)
    return calls


@pytest.mark.parametrize("place", ["a folder", "gs://bucket/run"])
def test_the_trace_lies_in_the_run_directory(tmp_path, monkeypatch, profiler, place):
    object_store.install(tmp_path / "store", monkeypatch)
    directory = RunDirectory(at(place) if "://" in place else tmp_path / place)
    said: list[str] = []
    hook = ProfileConfig(steps=(3, 4)).build(types.SimpleNamespace(directory=directory, say=said.append))
    made = [step for step in range(1, 6) if hook.due(step) and hook.on_step(step, {}) is None]
    hook.on_end(5, {}, finished=True)
    assert made == [2, 4] and len(profiler) == 2
    assert (directory.path / "profile" / "plugins" / "trace.pb").read_bytes() == b"trace"
    assert said == [f"step 4  wrote a trace to {directory.path / 'profile'}"]


def test_a_trace_of_the_first_step_is_refused():
    with pytest.raises(ValueError, match="the first step compiles"):
        ProfileConfig(steps=(1, 3))

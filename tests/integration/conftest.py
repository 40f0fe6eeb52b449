import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llm_jax import assemble
from llm_jax.core.run_directory import RunDirectory
from tests.helpers import tiny_run
from tests.helpers.command_line import Outcome, llm_jax


@pytest.fixture(autouse=True, scope="session")
def shared_programs() -> Iterator[None]:
    """Programs are pure functions: runs of one model, objective, optimizer and layout in this process share them.
    Tracing them takes longer than a tiny run does."""
    with pytest.MonkeyPatch.context() as patch:
        make = assemble.programs
        cached = functools.cache(lambda frozen, *arguments: make(*arguments, dict(frozen)))
        patch.setattr(assemble, "programs", lambda *found: cached(tuple(found[-1].items()), *found[:-1]))
        yield


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """Cache of compiled programs and tokenised data, shared by all runs of these tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def file(tmp_path) -> Path:
    """An experiment file with a corpus beside it."""
    return tiny_run.write_experiment(tmp_path / "lab")


@pytest.fixture
def train(file, tmp_path, cache) -> Callable[..., Outcome]:
    """`llm-jax train FILE ...` with runs in this test's folder."""
    return lambda *words: llm_jax("train", file, "--runs-dir", tmp_path / "runs", "--cache-dir", cache, *words)


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    """Where `train` leaves its run."""
    return RunDirectory(tmp_path / "runs" / "tiny")


@pytest.fixture(scope="session")
def finished(tmp_path_factory, cache) -> RunDirectory:
    """A run that is complete, with its test part scored. Only to be read; copy it to change it."""
    folder = tmp_path_factory.mktemp("finished")
    file = tiny_run.write_experiment(folder / "lab")
    outcome = llm_jax("train", file, "--runs-dir", folder, "--cache-dir", cache, "--evaluations.0.test")
    assert outcome.code == 0, outcome.err
    return RunDirectory(folder / "tiny")

"""Help comes at once: it imports little, and takes less processor time than the import of jax alone."""

import os
import re
import subprocess
import sys
from typing import NamedTuple

import pytest

from llm_jax.cli import COMMANDS
from tests.helpers import tiny_run
from tests.helpers.command_line import ENVIRONMENT, ROOT

NUMERIC = {"jax", "jaxlib", "flax", "optax"}
HEAVY = {"torch", "transformers", "tensorflow", "tensorboardX", "matplotlib", "orbax", "grain", "tensorflow_datasets"}


class Ended(NamedTuple):
    """What an interpreter did."""

    imported: set[str]
    """Packages and modules, without those inside packages."""
    seconds: float
    """Processor time."""


def ended(*words: object) -> Ended:
    """Runs `python ...`."""
    command = [sys.executable, "-X", "importtime", *map(str, words)]
    environment = os.environ | ENVIRONMENT
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)  # of this process alone, whatever else the suite has run
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said
    imported = set(re.findall(r"^import time: .*\| +(\w+)", said, re.MULTILINE))
    return Ended(imported, usage.ru_utime + usage.ru_stime)


@pytest.fixture(scope="module")
def jax():
    """The import of jax, whose time is the unit here since machines differ."""
    return min((ended("-c", "import jax") for _ in range(3)), key=lambda one: one.seconds)


def test_imports_are_seen(jax):
    assert {"jax", "jaxlib", "numpy"} <= jax.imported and "flax" not in jax.imported


def test_the_overview_imports_no_options_and_takes_a_fraction_of_the_time(jax):
    tries = [ended("-m", "llm_jax", "--help") for _ in range(3)]
    assert "llm_jax" in tries[0].imported
    assert tries[0].imported.isdisjoint(NUMERIC | HEAVY | {"numpy", "tyro"})
    assert min(one.seconds for one in tries) < jax.seconds / 4


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_imports_options_alone_and_takes_less_time(command, jax):
    words = ("-m", "llm_jax", command, "--help")
    first = ended(*words)
    assert "tyro" in first.imported
    assert first.imported.isdisjoint(NUMERIC | HEAVY)
    limit = 0.8 * jax.seconds
    assert first.seconds < limit or any(ended(*words).seconds < limit for _ in range(3))


READERS = [
    "train",
    "ablate",
    *(
        pytest.param(name, marks=pytest.mark.full(reason="they read it as `train` does"))
        for name in ("show", "shardings")
    ),
]


@pytest.mark.parametrize("command", READERS)
def test_the_help_of_an_experiment_imports_its_configs_alone(command, tmp_path):
    file = tiny_run.write_experiment(tmp_path / "lab")
    if command == "ablate":
        file.write_text(file.read_text() + "\n\ndef variants():\n    return {'one': experiment()}\n")
    found = ended("-m", "llm_jax", command, file, "--help").imported
    assert "flax" in found and found.isdisjoint(HEAVY)


def test_the_package_imports_experiments_when_they_are_asked_for():
    code = "import sys, llm_jax; assert 'jax' not in sys.modules; from llm_jax import Experiment, load_experiment"
    assert "jax" in ended("-c", code).imported

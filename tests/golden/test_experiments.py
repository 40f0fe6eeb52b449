"""No experiment changes unseen: neither by an edit of its file nor by another default deep in the package."""

import difflib

import pytest

from llm_jax.core import config_text
from llm_jax.experiment import load_experiment
from tests.golden import records

FILES = records.experiment_files()


@pytest.mark.parametrize("file", FILES, ids=str)
def test_the_experiment_is_what_it_was(file):
    golden = records.golden_file(file)
    old = golden.read_text(encoding="utf-8") if golden.exists() else ""
    changes = "\n".join(difflib.unified_diff(old.splitlines(), records.record(file).splitlines(), lineterm="", n=0))
    assert not changes, (
        f"experiments/{file} is not what its golden record says:\n{changes}\n"
        f"If this is meant, write the records anew and commit them: {records.COMMAND}"
    )


@pytest.mark.parametrize("file", FILES, ids=str)
def test_the_flat_text_of_an_experiment_is_the_whole_of_it(file):
    experiment = load_experiment(records.EXPERIMENTS / file)
    assert config_text.parse(config_text.to_text(experiment)) == experiment


def test_every_golden_record_has_its_experiment():
    assert FILES
    kept = {path.relative_to(records.GOLDEN).with_suffix(".py") for path in records.GOLDEN.rglob("*.txt")}
    assert kept <= set(FILES), f"golden records without an experiment; write them anew: {records.COMMAND}"


def test_every_experiment_is_named_after_its_file():
    assert [load_experiment(records.EXPERIMENTS / file).name for file in FILES] == [file.stem for file in FILES]
